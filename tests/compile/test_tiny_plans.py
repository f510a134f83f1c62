"""The bundled model as plans of TensorRT-RTX, by the command that users have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plan_checks import check_precision, check_tensors, check_weights
from toprovar.compile.cli import main as build_engine
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.baselines import dense
from toprovar.profiles.fidelity import psnr
from toprovar.profiles.manifest import SCHEDULE, EngineManifest
from toprovar.profiles.model import load_profile
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource
from torch_images import torch_images

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")
PROMPT, SEED = "a photo of a red star", 0
SCALES = (0, 4, 6)
PSNR_MIN = 30  # dB; at least 34.8 for four seeds on a CPU, at most 17.5 between two seeds or prompts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first scale, one in between, and a last one without guidance: a scale takes 20 seconds, whatever its size."""
    folder, base = tmp_path_factory.mktemp("tiny"), dense(load_profile("tiny"))
    rules = [replace(rule, run=rule.scale in SCALES, guidance=rule.scale < SCALES[-1]) for rule in base.scales]
    replace(base, policy="three scales", scales=tuple(rules)).save(folder / SCHEDULE)
    out, schedule = folder / "engine", str(folder / SCHEDULE)
    assert build_engine(["--schedule", schedule, "--target", "tensorrt-rtx", "--sm", "89", "--out", str(out)]) == 0
    return out


def test_every_plan_is_what_the_manifest_says(bundle: Path) -> None:
    manifest = EngineManifest.load(bundle)
    manifest.verify(bundle)
    assert [(scale.scale, scale.guidance) for scale in manifest.scales] == [(0, True), (4, True), (6, False)]
    assert set(manifest.engine["plans"]) >= {"words.plan", "condition.plan", "decoder.plan"}
    check_tensors(bundle)
    check_precision(bundle)
    check_weights(bundle)


def test_the_same_graphs_draw_on_onnx_runtime_what_torch_draws(bundle: Path) -> None:
    """The plans' own ONNX in fp16 against torch in fp32; single bits may flip where a probability meets the noise."""
    engine, model = Engine(bundle, threads=1), load_model(load_profile("tiny"), WeightOptions())
    features = TextSource(engine).encode([PROMPT])
    ours = engine.generate(features.text, features.lengths, [SEED]).pixels
    text = model.text.encode_prompts([PROMPT])
    theirs = torch_images(model, Schedule.load(bundle / SCHEDULE), text.features, text.lengths, [SEED])
    assert psnr(float(np.square((ours - theirs) * 127.5).mean())) > PSNR_MIN
