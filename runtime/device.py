"""The GPU as the plans need it: memory, one stream, time marks, CUDA graphs. torch manages them and computes nothing.

All that knows CUDA stands here; with another `Device` the same plans' code runs on a stand-in's memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the memory given to a context."""
log = logging.getLogger(__name__)


class EnqueueError(RuntimeError):
    """TensorRT would not enqueue a plan."""


class Device(Protocol):
    """Where plans run.

    Attributes:
        name: As torch calls it.
        handle: The stream's number, for TensorRT.
    """

    name: str
    handle: int

    def stream(self) -> AbstractContextManager[Any]:
        """Inside, torch works on this device's stream."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was queued on this device."""
        ...

    def mark(self) -> Any:
        """A point in the stream's time."""
        ...

    def milliseconds(self, first: Any, second: Any) -> float:
        """Between two marks that have passed."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """What `work` queues as one CUDA graph: its replay, or None where the capture is refused."""
        ...


class CudaDevice:
    """The GPU that torch uses; one stream of its own, since TensorRT synchronises on the default one."""

    name = "cuda"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._stream = torch.cuda.Stream()
        self.handle: int = self._stream.cuda_stream

    def stream(self) -> AbstractContextManager[Any]:
        return self._torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        self._torch.cuda.synchronize()

    def mark(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        graph = self._torch.cuda.CUDAGraph()
        try:
            # other threads may allocate meanwhile
            with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as problem:
            log.debug("capture refused: %s", problem)
            self.synchronize()
            return None
        return graph.replay


def aligned(nbytes: int, device: str) -> Tensor:
    """`[nbytes]` of memory that begins at a multiple of `ALIGNMENT`."""
    import torch

    block = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device=device)
    start = -block.data_ptr() % ALIGNMENT
    return block[start : start + nbytes]


class Arena:
    """Blocks of memory by name; a block grows when more is asked for, and who holds the older one keeps it.

    All request shapes share the blocks, because an engine draws one request at a time.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.blocks: dict[str, Tensor] = {}

    def take(self, name: str, nbytes: int) -> Tensor:
        """A block of at least `nbytes`."""
        if name not in self.blocks or len(self.blocks[name]) < nbytes:
            self.blocks[name] = aligned(max(nbytes, 1), self.device)
        return self.blocks[name]
