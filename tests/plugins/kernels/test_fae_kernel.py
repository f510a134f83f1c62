"""The FAE kernels against the definition in float64, on VAR lengths and against facts of the mathematics."""

from __future__ import annotations

import math
import os

import pytest
import torch
from fae_cases import DTYPES, agree, definition, inputs
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
from toprovar.plugins.flash_attention_entropy import launch
from toprovar.plugins.flash_attention_entropy.launch import LOG2_E, Tile

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SMALL = Tile(16, 16, 4, 1)
SHAPES = [(1, 2, 1, 1, 64), (1, 2, 4, 5, 16), (2, 3, 25, 55, 64), (2, 1, 36, 57, 96), (1, 1, 33, 130, 128), (1, 1, 7, 40, 224)]
IDS = ["B{}-H{}-Nq{}-Nk{}-D{}".format(*shape) for shape in SHAPES]


def fae(q: Tensor, k: Tensor, v: Tensor, scale: float, tile: Tile = SMALL, shares: int = 1) -> tuple[Tensor, Tensor]:
    if not INTERPRETED:
        return launch.forward(q, k, v, scale)
    o = torch.empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype).transpose(1, 2)
    e = torch.empty(q.shape[:3])
    # the interpreter's products of bf16 are wrong: computed in fp32 there
    launch.launch_tile(q, k, v, o, e, scale * LOG2_E, tile, shares, upcast=q.dtype == torch.bfloat16)
    return o, e


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    q, k, v = inputs(shape, dtype, device)
    agree(fae(q, k, v, 0.3), definition(q, k, v, 0.3))


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_shares_of_the_keys_merge_exactly(shares: int, device: str) -> None:
    """Five shares of 70 keys leave the last one empty."""
    q, k, v = inputs((1, 2, 5, 70, 32), torch.float32, device)
    o = torch.empty(1, 5, 2, 32, device=device).transpose(1, 2)
    e = torch.empty(1, 2, 5, device=device)
    launch.launch_tile(q, k, v, o, e, 0.3 * LOG2_E, SMALL, shares)
    agree((o, e), definition(q, k, v, 0.3))


@pytest.mark.parametrize("tile", [Tile(16, 64, 4, 2), Tile(64, 16, 4, 1), Tile(32, 32, 4, 2)], ids=str)
def test_every_tile_gives_the_same(tile: Tile, device: str) -> None:
    q, k, v = inputs((1, 2, 70, 131, 48), torch.float16, device)
    o = torch.empty(1, 70, 2, 48, dtype=torch.float16, device=device).transpose(1, 2)
    e = torch.empty(1, 2, 70, device=device)
    launch.launch_tile(q, k, v, o, e, 0.3 * LOG2_E, tile)
    agree((o, e), definition(q, k, v, 0.3))


def test_reads_a_fused_projection_and_a_cache_in_place(device: str) -> None:
    """q out of [B, N, 3, H, D]; k and v out of the front of a cache whose rest is NaN."""
    fused = torch.randn(2, 9, 3, 2, 32, generator=torch.Generator().manual_seed(1)).to(device)
    cache = torch.full((2, 2, 2, 64, 32), float("nan"), device=device)
    cache[:, :, :, :21] = torch.randn(2, 2, 2, 21, 32, generator=torch.Generator().manual_seed(2)).to(device)
    q = fused[:, :, 0].transpose(1, 2)
    k, v = cache[0, :, :, :21], cache[1, :, :, :21]
    agree(fae(q, k, v, 0.2), definition(q, k, v, 0.2))


def test_uniform_attention_has_entropy_log_n(device: str) -> None:
    _, k, v = inputs((1, 1, 5, 777, 16), torch.float32, device)
    for q, scale in ((torch.zeros(1, 1, 5, 16, device=device), 1.0), (torch.ones(1, 1, 5, 16, device=device), 0.0)):
        entropy = fae(q, k, v, scale, Tile(16, 128, 4, 1))[1]
        torch.testing.assert_close(entropy, torch.full((1, 1, 5), math.log(777), device=device))


def test_one_hot_attention_has_entropy_zero(device: str) -> None:
    """Logits far apart underflow to exactly 0 and must not give 0 * -inf."""
    keys = torch.eye(16, device=device)[None, None]
    output, entropy = fae(keys * 1e4, keys, keys, 1.0)
    torch.testing.assert_close(output, keys, rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy, torch.zeros(1, 1, 16, device=device), rtol=0, atol=1e-6)


def test_huge_and_far_negative_logits(device: str) -> None:
    """A first block whose every logit is near -1e9 must not turn the running maximum into NaN."""
    q, k, v = inputs((1, 1, 4, 40, 16), torch.float32, device)
    q, k = q.abs() * 1e4, k.abs()
    k[:, :, :30] *= -1e4
    k[:, :, 30:] = k[:, :, 30:31]
    output, entropy = fae(q, k, v, 1.0)
    torch.testing.assert_close(entropy, torch.full((1, 1, 4), math.log(10.0), device=device), rtol=0, atol=1e-4)
    torch.testing.assert_close(output, v[:, :, 30:].mean(dim=2, keepdim=True).expand_as(output), rtol=1e-4, atol=1e-4)


def test_adding_a_constant_to_the_logits_changes_nothing(device: str) -> None:
    """A key direction all keys share shifts every logit of a query alike."""
    q, k, v = inputs((1, 1, 9, 50, 32), torch.float32, device)
    q[..., 0], k[..., 0] = 1.0, 0.0
    expected = fae(q, k, v, 0.3)
    shifted = k.clone()
    shifted[..., 0] = 40.0
    got = fae(q, shifted, v, 0.3)
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=2e-5)


def test_duplicate_keys_add_log_two(device: str) -> None:
    q, k, v = inputs((1, 1, 9, 20, 16), torch.float32, device)
    single = fae(q, k, v, 0.5)[1]
    double = fae(q, torch.cat([k, k], dim=2), torch.cat([v, v], dim=2), 0.5)[1]
    torch.testing.assert_close(double, single + math.log(2))


def test_entropy_stays_in_its_bounds(device: str) -> None:
    q, k, v = inputs((1, 1, 40, 100, 32), torch.float16, device)
    for scale in (0.0, 1e-4, 0.3, 30.0):
        entropy = fae(q, k, v, scale)[1]
        assert float(entropy.min()) >= 0.0
        assert float(entropy.max()) <= math.log(100) + 1e-5


def test_nan_stays_visible(device: str) -> None:
    q, k, v = inputs((1, 1, 4, 40, 16), torch.float32, device)
    q[0, 0, 2, 3] = float("nan")
    output, entropy = fae(q, k, v, 1.0)
    assert entropy.isnan().tolist() == [[[False, False, True, False]]]
    assert output.isnan().any(dim=-1).tolist() == [[[False, False, True, False]]]


def test_two_runs_give_the_same_bits(device: str) -> None:
    q, k, v = inputs((1, 2, 40, 100, 32), torch.float16, device)
    first, second = fae(q, k, v, 0.3), fae(q, k, v, 0.3)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
