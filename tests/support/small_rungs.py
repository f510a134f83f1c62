"""Schedules with rungs for the small model, decided so that the test prompts do not all pick the same one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from small_model import PROMPTS, small_model, small_profile
from toprovar.models.family import build_steps
from toprovar.models.generate import Noise, generate, image_noise
from toprovar.models.load import LoadedModel
from toprovar.models.rungs import View
from toprovar.profiles.baselines import dense
from toprovar.profiles.decision import Decision, detail_features, entropy_features, thresholds
from toprovar.profiles.manifest import MANIFEST, SCHEDULE, EngineManifest, FileEntry, sha256_of
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.rules import Rung
from toprovar.profiles.schedule import Schedule, TokenRule

DECIDED = 4


def small(profile: ModelProfile | None = None) -> LoadedModel:
    """The small model, or its weights under another profile of the same shapes."""
    return small_model() if profile is None else replace(small_model(), profile=profile)


def text_and_noise(profile: ModelProfile, images: list[int]) -> tuple[torch.Tensor, torch.Tensor, Noise]:
    """Features, lengths and noise of prompts `images`, each drawn with its own number as seed."""
    text = small_model().text.encode_prompts([PROMPTS[i] for i in images])
    return text.features, text.lengths, image_noise(profile, images)


def with_rungs(features: str, profile: ModelProfile | None = None) -> Schedule:
    """Whole, without guidance and with fewer tokens, or short; two limits measured so that four prompts pick all three."""
    profile = profile or small_profile()
    base = replace(dense(profile), entropy_layer=1)
    names = ("whole", "fewer", "short")
    tails = [list(base.scales[DECIDED + 1 :]) for _ in names]
    for rule in tails[1]:
        count = rule.count // 2
        tokens = TokenRule(kept=(count, count), score="distance", fill="branch", cache_scale=DECIDED)
        tails[1][rule.scale - DECIDED - 1] = replace(rule, guidance=False, tokens=tokens)
    tails[2] = [replace(rule, run=rule.scale == DECIDED + 1) for rule in tails[2]]
    values = sorted(measured(features, profile, [0, 1, 2, 3])[:, 0])
    limits = ((values[0] + values[1]) / 2, (values[2] + values[3]) / 2)
    view = 2 if features == "detail" else None
    decision = Decision(scale=DECIDED, features=features, view=view, models=(thresholds(0, limits, names, features),))
    rungs = (Rung(name=names[0]), *(Rung(name=n, scales=tuple(t)) for n, t in zip(names[1:], tails[1:], strict=True)))
    return replace(base, policy=f"rungs by {features}", rungs=rungs, decision=decision)


def decided_by(bundle: Path, out: Path, names: tuple[str, ...], values: np.ndarray) -> Path:
    """A copy of a bundle that decides by its first feature, with limits between the given values: each picks another rung."""
    shutil.copytree(bundle, out)
    schedule, manifest = Schedule.load(out / SCHEDULE), EngineManifest.load(out)
    decision = schedule.decision
    assert decision is not None
    limits = tuple((low + high) / 2 for low, high in pairwise(sorted(values.tolist())))
    models = (thresholds(0, limits, names, decision.features),)
    schedule = replace(schedule, decision=replace(decision, models=models))
    schedule.save(out / SCHEDULE)
    entry = FileEntry(bytes=(out / SCHEDULE).stat().st_size, sha256=sha256_of(out / SCHEDULE))
    files = {**manifest.files, SCHEDULE: entry}
    (out / MANIFEST).write_bytes(replace(manifest, schedule_sha256=schedule.digest(), files=files).to_json())
    return out


def measured(features: str, profile: ModelProfile, images: list[int], decided: int = DECIDED) -> np.ndarray:
    """The features of images, from the dense model alone."""
    model, outputs = small(profile), {}
    # a schedule that reads the map of the decision's scale makes the dense scales before it write theirs
    base = replace(dense(profile), entropy_layer=1)
    tokens = TokenRule(kept=(9, 9))
    rules = [replace(r, tokens=tokens) if r.scale == decided + 1 else r for r in base.scales]
    steps, inputs = build_steps(model, replace(base, scales=tuple(rules))), text_and_noise(profile, images)
    generate(model.transformer, steps, *inputs, on_scale=lambda plan, out: outputs.update({plan.scale: dict(out)}))
    if features == "entropy":
        return entropy_features(outputs[decided]["entropy"].numpy())
    view = View(model.decoder, profile, Decision(scale=decided, features="detail", view=2, models=_any_model()))
    with torch.inference_mode():
        return detail_features(*(view(outputs[scale]["summed"]).numpy() for scale in (decided - 1, decided)))


def _any_model() -> tuple:
    return (thresholds(0, (), ("whole",), "detail"),)
