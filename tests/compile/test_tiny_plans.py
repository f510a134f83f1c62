"""The bundled model as plans of TensorRT-RTX, whole, by the command that users have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plan_checks import check_precision, check_tensors, check_weights
from toprovar.compile.cli import main as build_engine
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.fidelity import psnr
from toprovar.profiles.manifest import SCHEDULE, EngineManifest
from toprovar.profiles.model import load_profile
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource
from torch_images import torch_images

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")
PROMPT, SEED = "a photo of a red star", 0
PSNR_MIN = 45  # dB; 52, 59 and 71 for three seeds on a CPU


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guidance is dropped on the way, so that plans of both kinds of rows are among them."""
    out = tmp_path_factory.mktemp("tiny") / "engine"
    assert build_engine(["--policy", "noguide-2", "--target", "tensorrt-rtx", "--sm", "89", "--out", str(out)]) == 0
    return out


def test_every_plan_is_what_the_manifest_says(bundle: Path) -> None:
    manifest = EngineManifest.load(bundle)
    manifest.verify(bundle)
    assert len(manifest.scales) == len(load_profile("tiny").sizes)
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
