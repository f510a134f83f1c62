"""Engines that draw the same prompts and seeds in turn, and what their images say beside those of the first.

Every image is drawn by all engines before the next one, so that drifts of the machine fall on all alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...profiles.fidelity import squared_error, ssim
from ...runtime.images import save_png
from ...runtime.loop import Engine
from ...runtime.open_engine import open_engine
from ...runtime.text import TextSource
from .journal import Journal
from .outcome import Job, Outcome, Pixels, Tally

PICTURES = 8


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

    def read(self, drawn: Drawn, reference: Pixels, job: Job, counts: bool) -> Outcome:
        """The outcome of one image; `counts` if it was timed."""
        return Outcome(
            error=squared_error(drawn.pixels, reference),
            similarity=ssim(drawn.pixels, reference),
            latency_ms=drawn.latency_ms if counts else None,
            rung=drawn.rung,
            detections=None if self.detect is None else tuple(self.detect(drawn.pixels)),
            clip=None if self.clip is None else self.clip(drawn.pixels, job.prompt),
        )


def tally(
    drawers: Sequence[Drawer],
    jobs: Sequence[Job],
    readers: Readers | None = None,
    warm_up: int = 1,
    timed: int | None = None,
    kept: Path | None = None,
    journal: Journal | None = None,
) -> list[Tally]:
    """Draw every job with every engine.

    Args:
        drawers: The first is the reference.
        jobs: Images to draw.
        readers: Look at every image.
        warm_up: Images drawn before anything counts.
        timed: Jobs, from the first, that all engines draw in turn; beyond them nothing is timed. None times all.
        kept: Folder of the reference's images; beyond the timed jobs they are read from there where they exist already.
        journal: Keeps the outcomes; jobs that it knows are not drawn again.

    Returns:
        One tally an engine, in order; the reference's own compares it with itself.
    """
    from tqdm import tqdm

    results, readers = [Tally() for _ in drawers], readers or Readers()
    left = [job for job in jobs if journal is None or journal.outcomes(job) is None]
    for _ in range(warm_up if left else 0):
        for drawer in drawers:
            drawer.draw(left[0])
    timed = len(jobs) if timed is None else timed
    for index, job in enumerate(tqdm(jobs, unit="prompt", disable=None)):
        outcomes = None if journal is None else journal.outcomes(job)
        if outcomes is None:
            counts = index < timed
            drawn = _drawn(drawers, job, None if counts else kept)
            if kept is not None:
                _keep(kept, job, drawn[0].pixels)
            outcomes = [readers.read(one, drawn[0].pixels, job, counts) for one in drawn]
            for result, one in zip(results, drawn, strict=True):
                result.pictures += [one.pixels] if len(result.pictures) < PICTURES else []
            if journal is not None:
                journal.add(job, outcomes)
        for result, outcome in zip(results, outcomes, strict=True):
            result.add(outcome)
    return results


def _drawn(drawers: Sequence[Drawer], job: Job, kept: Path | None) -> list[Drawn]:
    """One image by all engines, one after the other."""
    return [_reference(drawers[0], job, kept), *(drawer.draw(job) for drawer in drawers[1:])]


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
