"""One small bundle for all tests of the run time, with every dimension of a schedule in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import everything_at_once, small_model
from toprovar.compile.bundle import build_bundle


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scale left out, guidance dropped, a layer skipped, tokens pruned by entropy with the rest from a cache."""
    folder = tmp_path_factory.mktemp("runtime") / "onnx"
    build_bundle(small_model(), everything_at_once(), folder, {"kind": "words"}, lambda _: None)
    return folder
