"""The bundled model as plans of TensorRT-RTX, whole, by the command that users have."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_checks import check_precision, check_tensors, check_weights
from toprovar.compile.cli import main as build_engine
from toprovar.profiles.manifest import EngineManifest
from toprovar.profiles.model import load_profile

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")


def test_the_bundled_model_builds_whole(tmp_path: Path) -> None:
    """Guidance is dropped on the way, so that plans of both kinds of rows are among them."""
    out = tmp_path / "engine"
    assert build_engine(["--policy", "noguide-2", "--target", "tensorrt-rtx", "--sm", "89", "--out", str(out)]) == 0
    manifest = EngineManifest.load(out)
    manifest.verify(out)
    assert len(manifest.scales) == len(load_profile("tiny").sizes)
    assert set(manifest.engine["plans"]) >= {"words.plan", "condition.plan", "decoder.plan"}
    check_tensors(out)
    check_precision(out)
    check_weights(out)
