"""One small bundle for all tests of the run time, with every dimension of a schedule in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_model import small_model, small_profile
from toprovar.compile.bundle import build_bundle
from toprovar.profiles.baselines import dense
from toprovar.profiles.schedule import TokenRule


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scale left out, guidance dropped, a layer skipped, tokens pruned by entropy with the rest from a cache."""
    base = dense(small_profile())
    rules = list(base.scales)
    rules[3] = replace(rules[3], run=False)
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(60, 144), fill="cache", cache_scale=4))
    rules[6] = replace(rules[6], guidance=False, tokens=TokenRule(kept=(128, 128)))
    rules[2] = replace(rules[2], skip_layers=(0,))
    schedule = replace(base, policy="everything", scales=tuple(rules), entropy_layer=1)
    folder = tmp_path_factory.mktemp("runtime") / "onnx"
    build_bundle(small_model(), schedule, folder, {"kind": "words"}, lambda _: None)
    return folder
