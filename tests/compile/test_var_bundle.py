"""VAR from a schedule to images on ONNX Runtime: the same images as torch, for every dimension of pruning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_var import small_var, small_var_profile
from toprovar.compile.bundle import build_bundle
from toprovar.models.family import build_steps
from toprovar.models.generate import generate, image_noise
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource

PROMPTS, SEEDS = ("3", "7"), (11, 12)


def everything() -> Schedule:
    """All four dimensions: a scale left out, guidance dropped, a layer skipped, tokens held and taken from an earlier scale."""
    base = dense(small_var_profile())
    rules = list(base.scales)
    rules[1] = replace(rules[1], run=False)
    rules[2] = replace(rules[2], skip_layers=(0,))
    rules[4] = replace(rules[4], tokens=TokenRule(kept=(20, 36), fill="cache", cache_scale=3))
    rules[5] = replace(rules[5], guidance=False, tokens=TokenRule(kept=(40, 40)))
    return replace(base, policy="everything", scales=tuple(rules), entropy_layer=1)


SCHEDULES = {"skip-2": baseline("skip-2", small_var_profile()), "everything": everything()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_engine_draws_the_images_of_torch(name: str, tmp_path: Path) -> None:
    schedule, model = SCHEDULES[name], small_var()
    build_bundle(model, schedule, tmp_path / "engine", model.text_source, lambda _: None)
    engine = Engine(tmp_path / "engine", threads=1)
    text = TextSource(engine).encode(PROMPTS)
    ours = engine.generate(text.text, text.lengths, SEEDS)
    features = model.text.encode_prompts(PROMPTS)
    summed = generate(
        model.transformer,
        build_steps(model, schedule),
        features.features,
        features.lengths,
        image_noise(model.profile, SEEDS),
    )
    with torch.inference_mode():
        expected = model.decoder(summed).clamp(-1, 1).numpy()
    np.testing.assert_allclose(ours.pixels, expected, rtol=0, atol=1e-4)
    alone = TextSource(engine).encode(PROMPTS[1:])
    np.testing.assert_allclose(engine.generate(alone.text, alone.lengths, SEEDS[1:]).pixels, ours.pixels[1:], rtol=0, atol=1e-4)
