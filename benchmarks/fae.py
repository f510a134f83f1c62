"""FAE against plain attention at every scale of Infinity-2B and 8B: what entropy costs, on one GPU.

    python -m toprovar.benchmarks.fae --rounds 21
    python -m toprovar.benchmarks.fae --models infinity-2b --rounds 5 | tail -1 | jq .targets

Columns: FAE, the same kernel without entropy, the SDPA back ends of PyTorch (cuDNN, flash; no entropy), and entropy from a
materialised softmax. Two rows a layer (guidance), bf16, calls in CUDA graphs, candidates in turn. Output and entropy are held
to float64 first: where they differ, nothing is timed. The last line of stdout is everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..plugins.flash_attention_entropy import flash_attention_entropy
from ..profiles.console import run_command
from ..profiles.errors import ToprovarError
from ..profiles.model import load_profile
from ..profiles.tables import table
from .cuda_timing import Timing, interleaved, machine

ROWS = 2
L2_BYTES = 120e6
# the four shapes of the published comparison (H, Nq, Nk)
LARGE = ((16, 4096, 10521), (16, 2304, 6425), (16, 1024, 2521), (28, 4096, 10521))
OUTPUT_ERROR, ENTROPY_ERROR = 6e-3, 5e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """q `[B, H, Nq, D]` against keys `[B, H, Nk, D]`."""

    heads: int
    queries: int
    keys: int
    width: int

    @property
    def large(self) -> bool:
        return (self.heads, self.queries, self.keys) in LARGE

    @property
    def flops(self) -> int:
        return 4 * ROWS * self.heads * self.queries * self.keys * self.width

    def inputs(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as they leave a projection: `[B, N, H, D]` storage."""
        generator = torch.Generator(device="cuda").manual_seed(seed)

        def draw(tokens: int) -> Tensor:
            made = torch.randn(ROWS, tokens, self.heads, self.width, generator=generator, device="cuda")
            return made.bfloat16().transpose(1, 2)

        return draw(self.queries), draw(self.keys), draw(self.keys)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["infinity-2b", "infinity-8b"], help="profiles whose scales are timed")
    parser.add_argument("--rounds", type=int, default=21, help="timed replays of each candidate (default: 21)")


def run(args: argparse.Namespace) -> int:
    """Check, time, print."""
    if not torch.cuda.is_available():
        raise ToprovarError("this benchmark needs a CUDA GPU; torch sees none (`toprovar doctor` says why)")
    rows = [["model", "B,H,Nq,Nk,D", "FAE us", "TFLOP/s", "no entropy", "cuDNN", "flash", "naive", "over", "/SDPA", "naive/"]]
    records: list[dict[str, Any]] = []
    for model, shape in _shapes(args.models):
        record = _measure(shape, args.rounds)
        records.append({"model": model, **record})
        rows.append(_row(model, shape, record))
        print(f"{model} Nq {shape.queries} done", file=sys.stderr)
    print(table(rows))
    targets = _targets(records)
    print(table([["target", "limit", "worst", "met"], *([n, limit, worst, met] for n, limit, worst, met in targets)]))
    print(json.dumps({"machine": machine(), "rounds": args.rounds, "shapes": records, "targets": targets}))
    return 0


def _shapes(models: Sequence[str]) -> Iterator[tuple[str, Shape]]:
    for name in models:
        profile = load_profile(name)
        keys = 0
        for height, width in profile.sizes:
            keys += height * width
            heads = profile.transformer.heads
            yield name, Shape(heads, height * width, keys, profile.transformer.head_width)


def without_entropy(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    from ..plugins.flash_attention_entropy.launch import forward

    return forward(q, k, v, scale, entropy=False)[0]


def plain(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def naive(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Entropy the plain way: the attention matrix is stored, fp32."""
    log_p = (q @ k.transpose(-1, -2)).float().mul_(scale).log_softmax(dim=-1)
    p = log_p.exp()
    return p.to(v.dtype) @ v, -(p * log_p).sum(dim=-1)


def _measure(shape: Shape, rounds: int) -> dict[str, Any]:
    _check(shape)
    bytes_a_call = 2 * (2 * shape.queries + 2 * shape.keys) * ROWS * shape.heads * shape.width
    sets = max(1, min(24, int(L2_BYTES // bytes_a_call) + 1))
    scale = shape.width**-0.5
    inputs = [(*shape.inputs(seed), scale) for seed in range(sets)]
    calls = max(sets, min(200, int(4e-3 / (shape.flops / 500e12 + 4e-6))))
    candidates = {"fae": flash_attention_entropy, "no_entropy": without_entropy}
    candidates |= {"flash": partial(plain, SDPBackend.FLASH_ATTENTION)}
    if shape.keys > 1:  # cuDNN refuses a single key
        candidates["cudnn"] = partial(plain, SDPBackend.CUDNN_ATTENTION)
    times = interleaved(candidates, inputs, calls, rounds)
    times |= interleaved({"naive": naive}, inputs[:1], max(1, calls // 20), max(3, rounds // 4))
    return {
        "shape": [ROWS, shape.heads, shape.queries, shape.keys, shape.width],
        "large": shape.large,
        "us": {name: [round(t.median_us, 2), round(t.low_us, 2), round(t.high_us, 2)] for name, t in times.items()},
        "tflops": round(shape.flops / times["fae"].median_us / 1e6),
        "bytes": {"fae": _peak(flash_attention_entropy, inputs[0]), "naive": _peak(naive, inputs[0])},
    }


def _check(shape: Shape) -> None:
    """Hold one head's first and last rows to float64, and every row to being written."""
    q, k, v = shape.inputs(1)
    scale = shape.width**-0.5
    output, entropy = flash_attention_entropy(q, k, v, scale)
    rows = sorted({*range(min(128, shape.queries)), *range(max(0, shape.queries - 128), shape.queries)})
    last = (ROWS - 1, shape.heads - 1)
    a = (q[last][rows].double() @ k[last].double().T * scale).softmax(dim=-1)
    expected = a @ v[last].double()
    error = float((output[last][rows].double() - expected).norm() / expected.norm())
    entropy_error = float((entropy[last][rows].double() + torch.special.xlogy(a, a).sum(-1)).abs().max())
    if not (
        error < OUTPUT_ERROR and entropy_error < ENTROPY_ERROR and bool(output.isfinite().all() & entropy.isfinite().all())
    ):
        raise ToprovarError(f"FAE is wrong at {shape}: output {error:.1e}, entropy {entropy_error:.1e}; nothing was timed")


def _peak(call: Any, arguments: tuple[Any, ...]) -> int:
    """Bytes allocated at most beyond the inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(*arguments)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _best(record: dict[str, Any]) -> float:
    return float(min(record["us"][name][0] for name in ("cudnn", "flash") if name in record["us"]))


def _row(model: str, shape: Shape, record: dict[str, Any]) -> list[str]:
    us = record["us"]
    fae = us["fae"][0]
    times = [str(Timing(*us[name])) if name in us else "-" for name in ("no_entropy", "cudnn", "flash")]
    sizes = f"{ROWS},{shape.heads},{shape.queries},{shape.keys},{shape.width}{' *' if shape.large else ''}"
    ratios = [f"{fae / us['no_entropy'][0]:.3f}", f"{fae / _best(record):.2f}", f"{us['naive'][0] / fae:.1f}"]
    return [model, sizes, str(Timing(*us["fae"])), str(record["tflops"]), *times, f"{us['naive'][0]:.0f}", *ratios]


def _targets(records: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The limits this kernel is held to, with the worst value found."""
    large = [r for r in records if r["large"]]
    others = [r for r in records if not r["large"]]
    small = [r for r in records if r["shape"][2] <= 256 and r["shape"][3] <= 521]

    def ratio(record: dict[str, Any], name: str) -> float:
        return float(record["us"]["fae"][0] / record["us"][name][0])

    found = [
        ("entropy over none, large *", 1.03, [ratio(r, "no_entropy") for r in large]),
        ("entropy over none, others", 1.05, [ratio(r, "no_entropy") for r in others]),
        ("over cuDNN without entropy, large *", 1.10, [ratio(r, "cudnn") for r in large]),
        ("over the best SDPA, small scales", 1.20, [r["us"]["fae"][0] / _best(r) for r in small]),
        ("over naive entropy, large *", 1 / 8, [ratio(r, "naive") for r in large]),
    ]
    return [
        (name, f"{limit:.3f}", f"{max(values):.3f}", "yes" if max(values) <= limit else "NO")
        for name, limit, values in found
        if values
    ]


if __name__ == "__main__":
    sys.exit(run_command("fae", add_arguments, run, "FAE against plain attention, scale by scale."))
