"""Timing on a GPU: calls captured in CUDA graphs, inputs rotated past the cache, candidates in turn, median, min and max."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds a call over all replays."""

    median_us: float
    low_us: float
    high_us: float

    def __str__(self) -> str:
        return f"{self.median_us:.1f} ({self.low_us:.1f}-{self.high_us:.1f})"


def capture(call: Call, inputs: Sequence[tuple[Any, ...]], calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls over the inputs in turn; the first calls, which compile, run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arguments in inputs[:2]:
            call(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(*inputs[i % len(inputs)])
    return graph


def interleaved(
    candidates: Mapping[str, Call], inputs: Sequence[tuple[Any, ...]], calls: int, rounds: int
) -> dict[str, Timing]:
    """Time all candidates in turn, so that a drift of the clocks falls on all alike."""
    graphs = {name: capture(call, inputs, calls) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(-1, rounds):
        for name, graph in graphs.items():
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 0:
                samples[name].append(start.elapsed_time(end) * 1e3 / calls)
    return {name: Timing(statistics.median(times), min(times), max(times)) for name, times in samples.items()}


def machine() -> dict[str, str]:
    """What a figure must stand beside: GPU, driver, versions."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gib": f"{properties.total_memory / 2**30:.0f}",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
    }
