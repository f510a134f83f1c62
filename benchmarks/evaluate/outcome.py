"""What is drawn, and what is kept of it: of one image of one engine, and of all images of one engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""`[h, w, 3]` RGB."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to draw."""

    prompt: str
    seed: int


def jobs_of(prompts: Sequence[str], seed: int, seeds: int = 1) -> list[Job]:
    """Every prompt with `seeds` seeds: image i of all is drawn with `seed + i`, round after round of the prompts."""
    return [Job(prompt, seed + turn * len(prompts) + i) for turn in range(seeds) for i, prompt in enumerate(prompts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one engine made of one image.

    Attributes:
        error: Mean squared difference to the reference's uint8 image.
        similarity: SSIM to it.
        latency_ms: Text features to pixels; None where it was not timed.
        rung: What the image picked; empty where the schedule has no rungs.
        detections: Objects read from the image; None where none were looked for.
        clip: CLIPScore; None where it was not asked for.
    """

    error: float
    similarity: float
    latency_ms: float | None = None
    rung: str = ""
    detections: tuple[Any, ...] | None = None
    clip: float | None = None


@dataclass(slots=True)
class Tally:
    """The outcomes of one engine on all jobs, see `Outcome`; what no image has stays empty.

    Attributes:
        latency_ms: Of the images that were timed.
        pictures: The first few images, as far as this process has drawn them.
    """

    latency_ms: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    pictures: list[Pixels] = field(default_factory=list)
    detections: list[Any] = field(default_factory=list)
    clip: list[float] = field(default_factory=list)
    rungs: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one more image."""
        self.error.append(outcome.error)
        self.similarity.append(outcome.similarity)
        self.latency_ms += [] if outcome.latency_ms is None else [outcome.latency_ms]
        self.rungs += [outcome.rung] if outcome.rung else []
        self.detections += [] if outcome.detections is None else [outcome.detections]
        self.clip += [] if outcome.clip is None else [outcome.clip]
