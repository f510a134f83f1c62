"""The run time's device on host memory, for the stand-in of TensorRT; a graph is what was recorded while capturing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensorrt_run_time import STREAM, RecordingTensorRT


class HostDevice:
    """A device whose memory the stand-in can read; `whole` False refuses a graph of more than one plan."""

    name = "cpu"
    handle = STREAM

    def __init__(self, trt: RecordingTensorRT, whole: bool = True) -> None:
        self.trt, self.whole = trt, whole
        self.replays = 0

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def synchronize(self) -> None:
        assert self.trt.captured is None, "a capture forbids it"

    def mark(self) -> float:
        return float(len(self.trt.ran))

    def milliseconds(self, first: float, second: float) -> float:
        return second - first

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        self.trt.captured = []
        try:
            work()
        except RuntimeError:
            return None
        finally:
            recorded, self.trt.captured = self.trt.captured, None
        if len(recorded) > 1 and not self.whole:
            return None

        def replay() -> None:
            self.replays += 1
            for run in recorded:
                run()

        return replay
