"""Token selection, gather and scatter on a GPU: ours against torch's own kernels, in microseconds a call.

    python -m toprovar.benchmarks.token_select
    python -m toprovar.benchmarks.token_select | tail -1 | jq '.cases[] | select(.op == "select")'

Selection stands against `torch.topk(sorted=False)` and a sort of its indices, row moves (bf16, C = 2048, B = 2) against
`torch.gather` and `torch.scatter` with expanded indices. Every candidate is a CUDA graph of 24 calls over 6 inputs in turn; the
graphs replay alternately. A time includes the gap between two nodes of a graph. Inputs of less than 8 MB stay in L2, as they
do in the model. Equality with the definition is checked first, for all cases; where it fails, nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..plugins import token_select
from ..plugins.token_select import reference
from ..profiles.console import run_command
from ..profiles.errors import ToprovarError
from ..profiles.tables import table
from .cuda_timing import Timing, interleaved, machine

ROWS = (1, 2, 8)
LENGTHS = (256, 1024, 1600, 2304, 4096, 16384)
BATCH, CHANNELS = 2, 2048
INPUTS, CALLS, LEAST_REPLAYS = 6, 24, 20

Call = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One op on `rows` rows of `n` tokens, of which `k` are chosen."""

    op: str
    rows: int
    n: int
    k: int

    def inputs(self, seed: int) -> list[tuple[Tensor, ...]]:
        """`INPUTS` argument tuples of the op, on the GPU."""
        generator = torch.Generator("cuda").manual_seed(seed)

        def scores() -> Tensor:
            return torch.rand(self.rows, self.n, device="cuda", generator=generator)

        def tokens(count: int) -> Tensor:
            return torch.randn(self.rows, count, CHANNELS, device="cuda", dtype=torch.bfloat16, generator=generator)

        def draw() -> tuple[Tensor, ...]:
            if self.op == "select":
                return (scores(),)
            moved = (tokens(self.n), reference.select(scores(), self.k, False))
            return (*moved, tokens(self.k)) if self.op == "scatter" else moved

        return [draw() for _ in range(INPUTS)]

    def calls(self) -> tuple[Call, Call, Call]:
        """Ours, torch's, and the definition."""
        if self.op == "select":
            ours = partial(token_select.select_tokens, k=self.k)
            return ours, partial(topk, k=self.k), partial(reference.select, k=self.k, largest=False)
        if self.op == "gather":
            return token_select.gather_rows, gather, reference.gather_rows
        return token_select.scatter_rows, scatter, reference.scatter_rows


def topk(scores: Tensor, k: int) -> Tensor:
    return scores.topk(k, dim=-1, largest=False, sorted=False).indices.sort(dim=-1).values


def gather(x: Tensor, indices: Tensor) -> Tensor:
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, CHANNELS))


def scatter(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return base.scatter(1, indices.unsqueeze(-1).expand(-1, -1, CHANNELS), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replays", type=int, default=40, help="timed replays of each graph, at least 20 (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Check, time, print."""
    if args.replays < LEAST_REPLAYS:
        raise ToprovarError(f"--replays: got {args.replays}, expected at least {LEAST_REPLAYS}; ask for more")
    if not torch.cuda.is_available():
        raise ToprovarError("this benchmark needs a CUDA GPU and torch sees none; run it on a machine with one")
    rows = [["op", "rows", "N", "k", "ours us (min-max)", "torch us (min-max)", "speed-up"]]
    records: list[dict[str, Any]] = []
    with torch.inference_mode():
        for case in _cases():
            _check(case, args.seed)
        for case in _cases():
            ours, theirs, _ = case.calls()
            times = interleaved({"ours": ours, "torch": theirs}, case.inputs(args.seed), CALLS, args.replays)
            record, row = _told(case, times)
            records.append(record)
            rows.append(row)
            print(f"{case} done", file=sys.stderr)
    print(table(rows))
    settings = {"replays": args.replays, "calls": CALLS, "inputs": INPUTS, "channels": CHANNELS, "seed": args.seed}
    print(json.dumps({"machine": machine(), **settings, "cases": records}))
    return 0


def _cases() -> Iterator[Case]:
    for op, counts in (("select", ROWS), ("gather", (BATCH,)), ("scatter", (BATCH,))):
        for rows in counts:
            for n in LENGTHS:
                yield from (Case(op, rows, n, k) for k in (n // 2, n // 4))


def _check(case: Case, seed: int) -> None:
    ours, _, definition = case.calls()
    for arguments in case.inputs(seed):
        if not ours(*arguments).equal(definition(*arguments)):
            raise ToprovarError(f"{case} differs from the definition, so nothing is timed; run pytest tests/plugins/kernels")


def _told(case: Case, times: dict[str, Timing]) -> tuple[dict[str, Any], list[str]]:
    """The case's JSON record and its line of the table."""
    speedup = times["torch"].median_us / times["ours"].median_us
    us = {name: [round(t.median_us, 3), round(t.low_us, 3), round(t.high_us, 3)] for name, t in times.items()}
    record = {"op": case.op, "rows": case.rows, "n": case.n, "k": case.k, "us": us, "speedup": round(speedup, 3)}
    return record, [case.op, str(case.rows), str(case.n), str(case.k), *map(str, times.values()), f"{speedup:.2f}x"]


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("token_select", add_arguments, run, "Token selection and row moves on a GPU.", argv)


if __name__ == "__main__":
    sys.exit(main())
