"""VAR from a schedule to images on ONNX Runtime: the same images as torch, for every dimension of pruning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matrix_cases import Case, model_of
from toprovar.compile.bundle import build_bundle
from toprovar.profiles.baselines import dense
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource
from torch_images import torch_images

PROMPTS, SEEDS = ("3", "7"), (11, 12)


def everything(profile: ModelProfile) -> Schedule:
    """All four dimensions: scales left out, guidance dropped, a layer skipped, tokens held and taken from an earlier scale."""
    base = dense(profile)
    rules = list(base.scales)
    rules[1] = replace(rules[1], run=False)
    rules[2] = replace(rules[2], skip_layers=(1,))
    rules[3] = replace(rules[3], tokens=TokenRule(kept=(10, 16), fill="cache", cache_scale=2))
    rules[4] = replace(rules[4], guidance=False, tokens=TokenRule(kept=(20, 20)))
    rules[5:] = [replace(rule, run=False, guidance=False) for rule in rules[5:]]
    return replace(base, policy="everything", scales=tuple(rules), entropy_layer=1)


def test_engine_draws_the_images_of_torch(tmp_path: Path) -> None:
    model = model_of(Case("var", "dense", 1.0, True))
    schedule = everything(model.profile)
    build_bundle(model, schedule, tmp_path / "engine", model.text_source, lambda _: None)
    engine = Engine(tmp_path / "engine", threads=1)
    text = TextSource(engine).encode(PROMPTS)
    ours = engine.generate(text.text, text.lengths, SEEDS)
    features = model.text.encode_prompts(PROMPTS)
    expected = torch_images(model, schedule, features.features, features.lengths, SEEDS)
    np.testing.assert_allclose(ours.pixels, expected, rtol=0, atol=1e-4)
    alone = TextSource(engine).encode(PROMPTS[1:])
    np.testing.assert_allclose(engine.generate(alone.text, alone.lengths, SEEDS[1:]).pixels, ours.pixels[1:], rtol=0, atol=1e-4)
