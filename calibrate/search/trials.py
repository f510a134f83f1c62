"""Fidelity of schedules to the dense image of the same prompt and noise, each run only from the first scale it changes.

The dense model runs once a prompt and its state before every scale is kept, so that a schedule that touches the last two scales
costs two scales. What has been measured is kept by the schedule's digest, on disk too, so that a search resumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.infinity.generate import build_steps, condition_rows, initial_state, run_scales
from ...models.infinity.step import ScaleStep, State
from ...models.infinity.vae import to_uint8
from ...models.load import LoadedModel
from ...models.noise import image_noise
from ...profiles.baselines import dense
from ...profiles.plan import plan_scales
from ...profiles.schedule import Schedule
from ...profiles.strict import write_atomic

PEAK = 255.0
# two equal images have no finite PSNR
PSNR_LIMIT_DB = 99.0

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a schedule's images are to the dense ones.

    Attributes:
        squared_error: Mean squared error of the uint8 image of each prompt.
    """

    squared_error: tuple[float, ...]

    @property
    def mse(self) -> float:
        return float(np.mean(self.squared_error))

    @property
    def psnr_db(self) -> float:
        """Mean over prompts of the PSNR of each image, in dB, at most 99."""
        return float(np.mean([psnr(value) for value in self.squared_error]))


def psnr(squared_error: float) -> float:
    """PSNR of uint8 images, in dB."""
    return min(PSNR_LIMIT_DB, 10 * math.log10(PEAK**2 / squared_error)) if squared_error > 0 else PSNR_LIMIT_DB


class Trials:
    """Runs schedules against the dense model on a fixed list of prompts.

    Args:
        model: All weights, on one device.
        prompts: Prompts and noise seeds.
        key: Whatever else the results depend on (model, weights, dtype); results of another key are thrown away.
        store: File that keeps the results, or None.
    """

    def __init__(self, model: LoadedModel, prompts: Sequence[tuple[str, int]], key: str, store: Path | None = None) -> None:
        self.model, self.prompts, self.key, self.store = model, tuple(prompts), key, store
        self.base = dense(model.profile)
        self.results: dict[str, dict[str, float]] = _stored(store, key)

    def measure(self, schedules: Iterable[Schedule], progress: Progress | None = None) -> list[Fidelity]:
        """Fidelity of each schedule, in order; one that was measured before is not run again.

        Args:
            schedules: For the model's profile.
            progress: Called after each prompt.
        """
        asked = list(schedules)
        names = [f"{seed} {prompt}" for prompt, seed in self.prompts]
        for (prompt, seed), name in zip(self.prompts, names, strict=True):
            new = {s.digest(): s for s in asked if name not in self.results.get(s.digest(), {})}
            if new:
                for digest, error in self._run(prompt, seed, new).items():
                    self.results.setdefault(digest, {})[name] = error
                self._save()
            if progress is not None:
                progress()
        return [Fidelity(tuple(self.results[s.digest()][name] for name in names)) for s in asked]

    @torch.inference_mode()
    def _run(self, prompt: str, seed: int, schedules: dict[str, Schedule]) -> dict[str, float]:
        """Squared error of each schedule on one prompt."""
        states, noise = self._dense_states(prompt, seed)
        reference = self._image(states[-1]["summed"])
        found = {}
        for digest, schedule in schedules.items():
            first = first_change(self.base, schedule)
            steps = [step for step in self._steps(schedule) if step.plan.scale >= first]
            state = run_scales(steps, states[first], noise) if steps else states[first]
            difference = self._image(state["summed"]) - reference
            found[digest] = float(np.mean(difference**2))
        return found

    def _steps(self, schedule: Schedule) -> tuple[ScaleStep, ...]:
        return build_steps(self.model.transformer, self.model.profile, schedule)

    def _dense_states(self, prompt: str, seed: int) -> tuple[list[State], Tensor]:
        """The dense state before every scale and after the last; it also holds the map and updates of the scale before."""
        model, profile = self.model, self.model.profile
        weight = next(model.transformer.parameters())
        text = model.text.encode_prompts([prompt])
        tokens = sum(h * w for h, w in profile.sizes)
        noise = torch.from_numpy(image_noise(seed, tokens, profile.transformer.token_bits))[None]
        noise = noise.to(weight.device)
        features, lengths = text.features.to(weight.device, weight.dtype), text.lengths.to(weight.device)
        rows = condition_rows(model.transformer, features, lengths, self.base.guided)
        state = initial_state(model.transformer.condition(*rows))
        states = [state]
        for plan in plan_scales(self.base):
            # what any schedule may read of an earlier scale is written by all of them
            full = replace(plan, writes_entropy=True, writes_delta=plan.layers, last=False)
            state = run_scales([ScaleStep(model.transformer, profile, full).eval()], state, noise)
            states.append(state)
        return states, noise

    def _image(self, summed: Tensor) -> NDArray[np.float64]:
        return np.asarray(to_uint8(self.model.vae.decoder(summed))[0].cpu().numpy(), dtype=np.float64)

    def _save(self) -> None:
        if self.store is not None:
            data = {"format": 1, "key": self.key, "results": self.results}
            write_atomic(self.store, json.dumps(data, sort_keys=True).encode())


def first_change(base: Schedule, schedule: Schedule) -> int:
    """Index of the first scale that differs, or the number of scales."""
    pairs = zip(base.scales, schedule.scales, strict=True)
    return next((a.scale for a, b in pairs if a != b), len(base.scales))


def _stored(path: Path | None, key: str) -> dict[str, dict[str, float]]:
    """Results of an earlier run of the same search; of another, or damaged, they count as none."""
    if path is None or not path.exists():
        return {}
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return data["results"] if data.get("format") == 1 and data.get("key") == key else {}
