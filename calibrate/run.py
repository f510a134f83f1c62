"""Run the dense model over the prompts and measure it; a killed run goes on where it stopped, to the same bits.

out/measurements.partial.safetensors   while it runs, replaced whole every half minute
out/measurements.safetensors           at the end; found again, it is not measured again
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..models.conv_vae import to_uint8
from ..models.family import build_steps
from ..models.generate import generate, image_noise
from ..models.load import LoadedModel
from ..models.step import ScaleStep
from ..profiles.baselines import dense
from ..profiles.errors import MeasurementError
from ..profiles.measurements import BINS, EXAMPLES, FORMAT, Measurements, first_difference
from .prompts import PromptSet
from .statistics import Collector

COMPLETE = "measurements.safetensors"
PARTIAL = "measurements.partial.safetensors"


def measure(
    model: LoadedModel,
    prompts: PromptSet,
    seed: int,
    out: Path,
    *,
    span: tuple[int, int] | None = None,
    save_every_s: float = 30.0,
    progress: bool = True,
) -> Measurements:
    """Measure the dense model on all prompts, or on a span of them, and write `measurements.safetensors`.

    Work is split by giving each process its span and folder; `Measurements.merge` makes one of the files.

    Args:
        model: All weights, on one device.
        prompts: In the order in which they run.
        seed: Prompt i is drawn with noise seed `seed + i`.
        out: Folder of the files.
        span: `(start, stop)` indices of the prompts to run, by default all.
        save_every_s: Seconds between two savings of what is measured so far.
        progress: Whether to draw a progress bar on stderr.

    Raises:
        MeasurementError: The folder holds the unfinished measurements of something else, or a file that cannot be read.
    """
    start, stop = span or (0, len(prompts.prompts))
    if not 0 <= start < stop <= len(prompts.prompts):
        raise MeasurementError(f"span {start} to {stop} is empty or outside the {len(prompts.prompts)} prompts")
    header = measurement_header(model, prompts, seed)
    found = _complete(out / COMPLETE, header, start, stop)
    if found is not None:
        print(f"{out / COMPLETE}: already measured, used again", file=sys.stderr)
        return found
    measurements = _unfinished(out / PARTIAL, header, start, stop) or Measurements.empty(header)
    done = int(measurements.header["prompts"])
    runner, saved_s = _Runner(model, seed, measurements), time.monotonic()
    for index in tqdm(range(start + done, stop), "calibrate", stop - start, initial=done, unit="prompt", disable=not progress):
        runner.run(index, prompts.prompts[index])
        if time.monotonic() - saved_s >= save_every_s and index + 1 < stop:
            measurements.save(out / PARTIAL)
            saved_s = time.monotonic()
    measurements.save(out / COMPLETE)
    (out / PARTIAL).unlink(missing_ok=True)
    return measurements


def measurement_header(model: LoadedModel, prompts: PromptSet, seed: int) -> dict[str, Any]:
    """What identifies a calibration, with nothing recorded yet."""
    profile = model.profile
    return {
        "format": FORMAT,
        "profile": profile.to_dict(),
        "weights": dict(model.digests),
        "dtype": str(next(model.transformer.parameters()).dtype).removeprefix("torch."),
        "prompts_sha256": prompts.sha256,
        "prompts": 0,
        "seed": seed,
        "examples": list(prompts.prompts[:EXAMPLES]),
        "sizes": [list(size) for size in profile.sizes],
        "layers": profile.transformer.depth,
        "heads": profile.transformer.heads,
        "bins": BINS,
        "spans": [],
        "cut": [],
    }


class _Runner:
    """The dense model with its statistics switched on."""

    def __init__(self, model: LoadedModel, seed: int, measurements: Measurements) -> None:
        self.model, self.seed, self.measurements = model, seed, measurements
        self.steps: tuple[ScaleStep, ...] = build_steps(model, dense(model.profile), observe=True)
        self.collector = Collector(measurements)

    def run(self, index: int, prompt: str) -> None:
        """Draw the image of one prompt and add what its scales show."""
        model, weight = self.model, self.model.weight
        text = model.text.encode_prompts([prompt])
        self.collector.start(range(index, index + 1), text.cut)
        summed = generate(
            model.transformer,
            self.steps,
            text.features.to(weight.device, weight.dtype),
            text.lengths.to(weight.device),
            image_noise(model.profile, [self.seed + index], weight.device),
            on_scale=self.collector.on_scale,
        )
        if index < EXAMPLES:
            with torch.inference_mode():
                image = to_uint8(model.decoder(summed))[0]
            self.measurements.examples[f"image.{index}"] = image.contiguous().cpu().numpy()


def _complete(path: Path, header: dict[str, Any], start: int, stop: int) -> Measurements | None:
    """The finished measurements of this very calibration, if they are there."""
    if not path.exists():
        return None
    found = Measurements.load(path)
    differing = first_difference(header, found.header)
    if not differing and found.header.get("spans") == [[start, stop]]:
        return found
    print(f"{path}: of another calibration ({differing or 'other prompts'}), will be replaced", file=sys.stderr)
    return None


def _unfinished(path: Path, header: dict[str, Any], start: int, stop: int) -> Measurements | None:
    """What a killed run left.

    Raises:
        MeasurementError: It was measuring something else.
    """
    if not path.exists():
        return None
    found = Measurements.load(path)
    differing = first_difference(header, found.header)
    done = found.header.get("spans") or [[start, start]]
    if not differing and (len(done) > 1 or done[0][0] != start or done[0][1] > stop):
        differing = f"span differs ({start} to {stop} here, {done} there)"
    if differing:
        raise MeasurementError(
            f"{path}: unfinished measurements of something else: {differing}; delete it or use another --out"
        )
    print(f"{path}: goes on after {found.header['prompts']} prompts", file=sys.stderr)
    return found
