"""FAE on a GPU: every kernel behind the public op, inside graphs and compilers, its memory, its memory accesses."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fae_cases import agree, definition, inputs
from toprovar.plugins.flash_attention_entropy import flash_attention_entropy
from torch import Tensor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
HALF = [torch.float16, torch.bfloat16]
# (B, H, Nq, Nk, D): the Triton tiles, shares of the keys, the Hopper kernel at each of its widths
SHAPES = [
    (2, 16, 1, 1, 128), (2, 16, 4, 5, 128), (2, 3, 25, 55, 64), (2, 16, 64, 121, 128), (2, 16, 144, 265, 128),
    (1, 2, 70, 10521, 128), (1, 1, 1, 4200, 224), (2, 2, 321, 1, 128), (1, 3, 400, 921, 64), (2, 2, 577, 1497, 96),
    (2, 3, 640, 700, 128), (1, 2, 600, 1111, 224), (1, 2, 513, 257, 256), (1, 2, 400, 921, 48), (1, 2, 400, 921, 16),
]  # fmt: skip
IDS = ["B{}-H{}-Nq{}-Nk{}-D{}".format(*shape) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = inputs(shape, dtype, "cuda")
    agree(flash_attention_entropy(q, k, v, 0.2), definition(q, k, v, 0.2))


@pytest.mark.parametrize("heads", [16, 28])
def test_matches_float64_on_the_last_scale(heads: int) -> None:
    q, k, v = inputs((2, heads, 4096, 10521, 128), torch.bfloat16, "cuda")
    output, entropy = flash_attention_entropy(q, k, v, 0.1)
    for b, h in ((0, 0), (1, heads - 1)):
        one = (slice(b, b + 1), slice(h, h + 1))
        agree((output[one], entropy[one]), definition(q[one], k[one], v[one], 0.1))


@pytest.mark.parametrize("queries", [36, 400])
def test_reads_a_fused_projection_and_a_cache_in_place(queries: int) -> None:
    """q out of [B, N, 3, H, D]; k and v out of the front of caches whose rest is NaN."""
    generator = torch.Generator(device="cuda").manual_seed(3)
    fused = torch.randn(2, queries, 3, 4, 128, generator=generator, device="cuda").bfloat16()
    cache = torch.full((2, 2, 4, 2000, 128), float("nan"), device="cuda", dtype=torch.bfloat16)
    cache[:, :, :, :777] = torch.randn(2, 2, 4, 777, 128, generator=generator, device="cuda").bfloat16()
    q, k, v = fused[:, :, 0].transpose(1, 2), cache[0, :, :, :777], cache[1, :, :, :777]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = flash_attention_entropy(q, k, v, 0.1)
    assert torch.cuda.max_memory_allocated() - before <= 2 * q.numel() * 2  # output and entropy, no copies of k and v
    agree(got, definition(q, k, v, 0.1))


def test_a_dimension_of_one_may_have_any_stride() -> None:
    q, k, v = inputs((1, 1, 400, 130, 64), torch.float16, "cuda")
    odd = [tensor.as_strided(tensor.shape, (7, 13, *tensor.stride()[2:])) for tensor in (q, k, v)]
    agree(flash_attention_entropy(*odd, 0.2), definition(q, k, v, 0.2))


def test_unaligned_rows_fall_back() -> None:
    """TMA cannot read rows that do not start at 16 bytes; the pointer kernel can."""
    wide = [tensor.new_empty(1, 400, 1, 65).normal_() for tensor in inputs((1, 1, 400, 400, 64), torch.float16, "cuda")]
    q, k, v = (tensor[..., 1:].transpose(1, 2) for tensor in wide)
    agree(flash_attention_entropy(q, k, v, 0.2), definition(q, k, v, 0.2))


def test_negative_scale_and_scattered_last_dimension() -> None:
    q, k, v = inputs((1, 2, 400, 300, 64), torch.float16, "cuda")
    agree(flash_attention_entropy(q, k, v, -0.2), definition(q, k, v, -0.2))
    apart = k.transpose(-1, -2).contiguous().transpose(-1, -2)
    agree(flash_attention_entropy(q, apart, v, 0.2), definition(q, k, v, 0.2))


@pytest.mark.parametrize("queries", [9, 400])
def test_facts_of_the_mathematics(queries: int) -> None:
    q, k, v = inputs((1, 2, queries, 777, 64), torch.bfloat16, "cuda")
    uniform = flash_attention_entropy(torch.zeros_like(q), k, v, 1.0)[1]
    torch.testing.assert_close(uniform, torch.full_like(uniform, math.log(777)))
    torch.testing.assert_close(flash_attention_entropy(q, k, v, 0.0)[1], torch.full_like(uniform, math.log(777)))
    double = flash_attention_entropy(q, torch.cat([k, k], dim=2), torch.cat([v, v], dim=2), 0.1)[1]
    torch.testing.assert_close(double, flash_attention_entropy(q, k, v, 0.1)[1] + math.log(2), rtol=0, atol=2e-5)
    keys = torch.eye(64, device="cuda", dtype=torch.bfloat16)[None, None]
    picked = torch.arange(queries, device="cuda") % 64
    output, entropy = flash_attention_entropy(keys[:, :, picked] * 1e4, keys, keys, 1.0)
    assert torch.equal(output, keys[:, :, picked])
    torch.testing.assert_close(entropy, torch.zeros_like(entropy), rtol=0, atol=1e-6)


@pytest.mark.parametrize("queries", [9, 400])
def test_nan_stays_visible(queries: int) -> None:
    q, k, v = inputs((1, 1, queries, 300, 64), torch.bfloat16, "cuda")
    q[0, 0, 2, 3] = float("nan")
    output, entropy = flash_attention_entropy(q, k, v, 1.0)
    assert entropy[0, 0].isnan().nonzero().flatten().tolist() == [2]
    assert output[0, 0].isnan().any(dim=-1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("shape", [(2, 4, 36, 57, 128), (2, 4, 100, 5000, 128), (2, 4, 400, 921, 128)], ids=str)
def test_graphs_and_compilers_give_the_same_bits(shape: tuple[int, ...]) -> None:
    q, k, v = inputs(shape, torch.bfloat16, "cuda")
    expected = flash_attention_entropy(q, k, v, 0.1)

    def merged(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        output, entropy = flash_attention_entropy(q, k, v, 0.1)
        return output.transpose(1, 2).flatten(2), entropy.mean(dim=1)

    plain = merged(q, k, v)
    compiled = torch.compile(merged, fullgraph=True)(q, k, v)
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=1e-6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flash_attention_entropy(q, k, v, 0.1)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured[0], expected[0])
    assert torch.equal(captured[1], expected[1])
    torch.library.opcheck(torch.ops.toprovar.flash_attention_entropy.default, (q, k, v, 0.1))


def test_memory_does_not_grow_with_the_product_of_lengths() -> None:
    q, k, v = inputs((1, 2, 4096, 10521, 128), torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output, entropy = flash_attention_entropy(q, k, v, 0.1)
    used = torch.cuda.max_memory_allocated() - before
    assert used <= output.nbytes + entropy.nbytes + 4096


def test_memory_accesses_are_clean() -> None:
    """NVIDIA's memory checker over every kernel; without a cache of allocations an access outside a tensor is one it sees."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    script = Path(__file__).parents[1] / "support" / "fae_all_kernels.py"
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, str(script)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "all kernels ran" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout, done.stdout[-3000:]
