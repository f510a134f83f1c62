"""Fidelity of schedules to the dense image of the same prompt and noise, each run only from the first scale it changes.

The dense model runs once a prompt and its state before every scale is kept, so that a schedule that touches the last two scales
costs two scales. What has been measured is kept by the schedule's digest, on disk too, so that a search resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.conv_vae import to_uint8
from ...models.family import family_of
from ...models.generate import Noise, condition_rows, image_noise, run_scales
from ...models.load import LoadedModel
from ...models.state import State
from ...profiles.baselines import dense
from ...profiles.fidelity import psnr, squared_error, ssim
from ...profiles.plan import ScalePlan, plan_scales
from ...profiles.schedule import Schedule
from ...profiles.strict import write_atomic

FORMAT = 2
Progress = Callable[[], None]
Results = dict[str, dict[str, Sequence[float]]]
"""Squared error and perhaps SSIM by schedule digest and prompt."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a schedule's images are to the dense ones.

    Attributes:
        squared_error: Mean squared error of the uint8 image of each prompt.
        similarity: SSIM of each, or nothing where it was not asked for.
    """

    squared_error: tuple[float, ...]
    similarity: tuple[float, ...] = ()

    @property
    def mse(self) -> float:
        return float(np.mean(self.squared_error))

    @property
    def psnr_db(self) -> float:
        """Mean over prompts of the PSNR of each image, in dB, at most 99."""
        return float(np.mean([psnr(value) for value in self.squared_error]))

    @property
    def ssim(self) -> float | None:
        """Mean over prompts, where it was asked for."""
        return float(np.mean(self.similarity)) if self.similarity else None


class Trials:
    """Runs schedules against the dense model on a fixed list of prompts.

    Args:
        model: All weights, on one device.
        prompts: Prompts and noise seeds.
        key: Whatever else the results depend on (model, weights, dtype); results of another key are thrown away.
        store: File that keeps the results, or None.
        with_ssim: Whether SSIM is measured beside the squared error; it takes longer than some scales.

    Attributes:
        ran: Schedules run so far, each on one prompt; what was known already is not counted.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[tuple[str, int]],
        key: str,
        store: Path | None = None,
        with_ssim: bool = False,
    ) -> None:
        self.model, self.prompts, self.key, self.store = model, tuple(prompts), key, store
        self.with_ssim = with_ssim
        # a third of what a late change takes would be the plain decoder's
        self.decode = family_of(model.profile).fast_decoder(model.decoder) if model.weight.is_cuda else model.decoder
        self.base = dense(model.profile)
        self.results: Results = _stored(store, key)
        self.ran = 0

    def measure(
        self, schedules: Iterable[Schedule], progress: Progress | None = None, first: int | None = None
    ) -> list[Fidelity]:
        """Fidelity of each schedule, in order; one that was measured before is not run again.

        Args:
            schedules: For the model's profile.
            progress: Called after each prompt.
            first: Prompts to measure on, from the first; None for all.
        """
        asked, prompts = list(schedules), self.prompts[:first]
        names = [f"{seed} {prompt}" for prompt, seed in prompts]
        for (prompt, seed), name in zip(prompts, names, strict=True):
            new = {s.digest(): s for s in asked if not self._known(s.digest(), name)}
            if new:
                self.ran += len(new)
                for digest, values in self._run(prompt, seed, new).items():
                    self.results.setdefault(digest, {})[name] = values
                self._save()
            if progress is not None:
                progress()
        return [self._fidelity(s.digest(), names) for s in asked]

    def _known(self, digest: str, name: str) -> bool:
        values = self.results.get(digest, {}).get(name, ())
        return len(values) > self.with_ssim

    def _fidelity(self, digest: str, names: Sequence[str]) -> Fidelity:
        values = [self.results[digest][name] for name in names]
        return Fidelity(tuple(v[0] for v in values), tuple(v[1] for v in values) if self.with_ssim else ())

    @torch.inference_mode()
    def _run(self, prompt: str, seed: int, schedules: dict[str, Schedule]) -> dict[str, tuple[float, ...]]:
        """Squared error, and SSIM where asked, of each schedule on one prompt."""
        rows = self._rows(prompt)
        states, noise = self.dense_states(prompt, seed)
        reference = self.image(states[-1]["summed"])
        found = {}
        for digest, schedule in schedules.items():
            plans = plan_scales(schedule)
            # the dense run keeps no outputs of branches: a scale whose outputs are read later runs again
            cached = [plan.scale for plan in plans if plan.writes_branches]
            first = min([first_change(self.base, schedule), *cached])
            image = self.image(self._end(tuple(plan for plan in plans if plan.scale >= first), rows, states[first], noise))
            found[digest] = (squared_error(image, reference), *([ssim(image, reference)] if self.with_ssim else []))
        return found

    def _end(self, plans: Sequence[ScalePlan], rows: tuple[Tensor, Tensor], state: State, noise: Noise) -> Tensor:
        """Summed codes after the last scales of an image; as the state has them where none is left."""
        if not plans:
            return state["summed"]
        return family_of(self.model.profile).ready_steps(self.model, plans).resume(*rows, state, noise)

    def dense_states(self, prompt: str, seed: int) -> tuple[list[State], Noise]:
        """The dense state before every scale and after the last; it also holds the map and updates of the scale before."""
        profile = self.model.profile
        noise = image_noise(profile, [seed], self.model.weight.device)
        steps = family_of(profile).ready_steps(self.model, [self._full(plan) for plan in plan_scales(self.base)])
        states = [steps.begin(*self._rows(prompt))]
        for step in steps.steps:
            states.append(run_scales([step], states[-1], noise))
        return states, noise

    def _rows(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Features and lengths of a prompt's rows."""
        model, text = self.model, self.model.text.encode_prompts([prompt])
        features, lengths = text.features.to(model.weight.device, model.weight.dtype), text.lengths.to(model.weight.device)
        return condition_rows(model.transformer, features, lengths, self.base.guided)

    def _full(self, plan: ScalePlan) -> ScalePlan:
        """The dense scale that leaves whatever any schedule may read of it."""
        differs = plan.guidance and self.model.profile.sampling.guides_logits
        return replace(plan, writes_entropy=True, writes_delta=plan.layers, writes_difference=differs, last=False)

    def image(self, summed: Tensor) -> NDArray[np.float64]:
        """Summed codes `[1, d, H, W]` to an image `[h, w, 3]` of whole numbers, 0 to 255."""
        return np.asarray(to_uint8(self.decode(summed).float())[0].cpu().numpy(), dtype=np.float64)

    def _save(self) -> None:
        if self.store is not None:
            data = {"format": FORMAT, "key": self.key, "results": self.results}
            write_atomic(self.store, json.dumps(data, sort_keys=True).encode())


def first_change(base: Schedule, schedule: Schedule) -> int:
    """Index of the first scale that differs, or the number of scales."""
    pairs = zip(base.scales, schedule.scales, strict=True)
    return next((a.scale for a, b in pairs if a != b), len(base.scales))


def _stored(path: Path | None, key: str) -> Results:
    """Results of an earlier run of the same search; of another, or damaged, they count as none."""
    if path is None or not path.exists():
        return {}
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return data["results"] if data.get("format") == FORMAT and data.get("key") == key else {}
