"""Scales that reuse differences and updates, on the `onnx` target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matrix_cases import FAMILIES, PROMPTS, Case, model_of
from reuse_cases import reusing
from toprovar.compile.bundle import build_bundle
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource
from torch_images import torch_images

SEEDS = (11, 12, 13, 14)
TOLERANCE = 1e-3  # of pixels in [-1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_draws_as_torch(family: str, tmp_path: Path) -> None:
    model = model_of(Case(family, "dense", 1.0, True))
    schedule = reusing(model.profile, held=True)
    build_bundle(model, schedule, tmp_path / "engine", model.text_source, lambda _: None)
    engine = Engine(tmp_path / "engine", threads=1)
    text = TextSource(engine).encode(PROMPTS[family])
    found = engine.generate(text.text, text.lengths, SEEDS).pixels
    features, lengths = torch.from_numpy(text.text), torch.from_numpy(text.lengths)
    expected = torch_images(model, schedule, features, lengths, SEEDS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
