"""Engines that draw the same prompts and seeds in turn, and what their images say beside those of the first.

Every image is drawn by all engines before the next one, so that drifts of the machine fall on all alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...profiles.fidelity import squared_error, ssim
from ...runtime.images import save_png
from ...runtime.loop import Engine
from ...runtime.open_engine import open_engine
from ...runtime.text import TextSource

Pixels = NDArray[np.uint8]
PICTURES = 8


@dataclass(frozen=True, slots=True)
class Job:
    """One image to draw."""

    prompt: str
    seed: int


@dataclass(slots=True)
class Tally:
    """What one engine did on all jobs.

    Attributes:
        latency_ms: Of the images that were timed, text features to pixels.
        error: Mean squared difference to the reference's uint8 image.
        similarity: SSIM to it.
        pictures: The first few images.
        detections: Objects read from each image, where a reader was given.
        clip: CLIPScore of each image, where a scorer was given.
        rungs: What each image picked, where the schedule has rungs.
    """

    latency_ms: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    pictures: list[Pixels] = field(default_factory=list)
    detections: list[Any] = field(default_factory=list)
    clip: list[float] = field(default_factory=list)
    rungs: list[str] = field(default_factory=list)


class Drawn(NamedTuple):
    """One image `[h, w, 3]`, its milliseconds from text features to pixels, and the rung it picked, or none."""

    pixels: Pixels
    latency_ms: float
    rung: str = ""


class Drawer:
    """A bundle, opened, with its text encoder."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.engine: Engine = open_engine(folder, threads)
        self.text = TextSource(self.engine)

    def draw(self, job: Job) -> Drawn:
        features = self.text.encode([job.prompt])
        images = self.engine.generate(features.text, features.lengths, [job.seed])
        return Drawn(images.uint8()[0], sum(images.milliseconds.values()), "".join(images.rungs))


class Readers:
    """What reads an image beside the comparison: objects in it, or how it fits its prompt; None leaves it out."""

    def __init__(self, detect: Any = None, clip: Any = None) -> None:
        self.detect, self.clip = detect, clip

    def read(self, tally: Tally, pixels: Pixels, job: Job) -> None:
        if self.detect is not None:
            tally.detections.append(self.detect(pixels))
        if self.clip is not None:
            tally.clip.append(self.clip(pixels, job.prompt))


def jobs_of(prompts: Sequence[str], seed: int, seeds: int = 1) -> list[Job]:
    """Every prompt with `seeds` seeds: image i of all is drawn with `seed + i`, round after round of the prompts."""
    return [Job(prompt, seed + turn * len(prompts) + i) for turn in range(seeds) for i, prompt in enumerate(prompts)]


def tally(
    drawers: Sequence[Drawer],
    jobs: Sequence[Job],
    readers: Readers | None = None,
    warm_up: int = 1,
    timed: int | None = None,
    kept: Path | None = None,
) -> list[Tally]:
    """Draw every job with every engine.

    Args:
        drawers: The first is the reference.
        jobs: Images to draw.
        readers: Look at every image.
        warm_up: Images drawn before anything counts.
        timed: Jobs, from the first, that all engines draw in turn; beyond them nothing is timed. None times all.
        kept: Folder of the reference's images; beyond the timed jobs they are read from there where they exist already.

    Returns:
        One tally an engine, in order; the reference's own compares it with itself.
    """
    from tqdm import tqdm

    results = [Tally() for _ in drawers]
    timed = len(jobs) if timed is None else timed
    for index in tqdm(range(-warm_up, len(jobs)), unit="prompt", disable=None):
        job = jobs[max(index, 0)]
        counts = index < timed
        reference = _reference(drawers[0], job, None if counts else kept)
        if index >= 0 and kept is not None:
            _keep(kept, job, reference.pixels)
        for drawer, result in zip(drawers, results, strict=True):
            drawn = reference if drawer is drawers[0] else drawer.draw(job)
            if index < 0:
                continue
            if counts:
                result.latency_ms.append(drawn.latency_ms)
            _compare(result, drawn, reference.pixels)
            if readers is not None:
                readers.read(result, drawn.pixels, job)
    return results


def _compare(result: Tally, drawn: Drawn, reference: Pixels) -> None:
    result.error.append(squared_error(drawn.pixels, reference))
    result.similarity.append(ssim(drawn.pixels, reference))
    result.rungs += [drawn.rung] if drawn.rung else []
    if len(result.pictures) < PICTURES:
        result.pictures.append(drawn.pixels)


def _reference(drawer: Drawer, job: Job, kept: Path | None) -> Drawn:
    """Drawn, or read where it was drawn before."""
    if kept is not None and (path := kept / _name(job)).exists():
        from PIL import Image

        image = Image.open(path)
        if getattr(image, "text", {}).get("prompt") == job.prompt:
            return Drawn(np.asarray(image.convert("RGB")), 0.0)
    return drawer.draw(job)


def _keep(folder: Path, job: Job, pixels: Pixels) -> None:
    if not (folder / _name(job)).exists():
        save_png(folder / _name(job), pixels, {"prompt": job.prompt, "seed": str(job.seed)})


def _name(job: Job) -> str:
    return f"{job.seed:08d}.png"
