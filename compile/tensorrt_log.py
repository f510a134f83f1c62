"""What TensorRT says and does while it builds: last errors for our messages, the phase for the progress bar, Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("toprovar.tensorrt")


def make_logger(trt: Any) -> Any:
    """A logger that keeps the last errors (`last()`) and hands warnings to Python's logging."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split())[:300])
            elif int(severity) == int(trt.ILogger.Severity.WARNING):
                log.info("%s", message)

        def last(self) -> str:
            return self.errors[-1] if self.errors else "it gives no reason"

    return Logger()


def make_monitor(trt: Any, detail: Callable[[str], None]) -> Any:
    """A progress monitor that tells the outermost phase and its share that is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, int] = {}
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not self.phases:
                detail(phase_name)
            self.phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == next(iter(self.phases), None):
                detail(f"{phase_name} {(step + 1) / max(1, self.phases[phase_name]):.0%}")
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return Monitor()


@contextmanager
def interruptible(monitor: Any) -> Iterator[None]:
    """Ctrl-C cancels the build inside at TensorRT's next step.

    An exception in a callback does not cross TensorRT's frames: it would print it and give no plan.

    Raises:
        KeyboardInterrupt: Behind the build, where it was asked for.
    """
    monitor.cancelled = False
    monitor.phases.clear()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        # only the main thread may take signals, and a job in the background ignores this one
        yield
        return

    def cancel(*_: object) -> None:
        monitor.cancelled = True

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if monitor.cancelled:
        raise KeyboardInterrupt
