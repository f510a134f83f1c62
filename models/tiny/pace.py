"""How long a training lasts and where it runs: by steps or by the clock, whichever ends first.

The learning rate follows progress, not steps, so that a run on a slower machine still decays to the end of its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
WARM_UP = 0.02
FINAL_RATE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Device, seed, log, and whether functions are compiled."""

    device: torch.device
    seed: int
    log: Callable[[str], None]
    compiled: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def half(self) -> bool:
        """Whether blocks compute in bf16: on CUDA, and on processors that multiply bf16."""
        return self.cuda or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def compile(self, function: F) -> F:
        """The function, compiled where the run asks for it."""
        return torch.compile(function, dynamic=False) if self.compiled else function  # type: ignore[return-value]


@dataclass(slots=True, kw_only=True)
class Pace:
    """Progress of one training.

    Attributes:
        steps: The most steps.
        seconds: The longest time, over all runs.
        batch: Images a step.
        step: Steps done.
        elapsed: Seconds spent in earlier runs.
    """

    steps: int
    seconds: float
    batch: int
    step: int = 0
    elapsed: float = 0.0
    _since: float | None = None
    _mark: tuple[float, int] = field(default=(0.0, 0))

    def start(self) -> None:
        """Start the clock; idempotent."""
        if self._since is None:
            self._since = time.monotonic()
            self._mark = (self._since, self.step)

    def spent(self) -> float:
        """Seconds so far, earlier runs included."""
        return self.elapsed + (time.monotonic() - self._since if self._since is not None else 0.0)

    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(self.step / self.steps, self.spent() / self.seconds))

    def rate(self, peak: float) -> float:
        """Learning rate: a short warm-up, then a straight line to 2 % of the peak."""
        progress = self.progress()
        return peak * min(progress / WARM_UP + 1e-3, max(FINAL_RATE, 1 - (progress - WARM_UP) / (1 - WARM_UP)))

    def seconds_a_step(self) -> float:
        """Mean since the last call."""
        now = time.monotonic()
        (before, step), self._mark = self._mark, (now, self.step)
        return (now - before) / max(1, self.step - step)
