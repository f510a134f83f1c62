"""HART as an engine: ONNX Runtime equals torch, whatever a schedule removes; weights are stored once, under their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hart_model import draw, loaded, small_model, small_profile
from safetensors import safe_open
from toprovar.compile.bundle import build_bundle
from toprovar.profiles.baselines import dense
from toprovar.profiles.manifest import WEIGHTS
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource

TEXT = {"kind": "random", "seed": 0}
PROMPTS = ("a red circle", "two blue stars beside a cup")
TOLERANCE = 1e-3  # of pixels in [-1, 1]; measured 2e-5


def everything_at_once(profile: ModelProfile) -> Schedule:
    """A layer skipped (that of the text too), updates and branches enlarged, a last scale without guidance, tokens held."""
    base = dense(profile)
    rules = list(base.scales)
    rules[0] = replace(rules[0], skip_layers=(0,))
    rules[2] = replace(rules[2], tokens=TokenRule(kept=(4, 9), fill="branch", cache_scale=1, score="distance"))
    rules[3] = replace(rules[3], tokens=TokenRule(kept=(25, 9), fill="cache", cache_scale=1))
    rules[4] = replace(rules[4], guidance=False, tokens=TokenRule(kept=(20, 20)))
    return replace(base, policy="everything", scales=tuple(rules), entropy_layer=1)


def _build(profile: ModelProfile, schedule: Schedule, folder: Path) -> None:
    build_bundle(loaded(profile, *small_model()), schedule, folder, TEXT, lambda _: None)


def _compare(folder: Path, profile: ModelProfile, schedule: Schedule, batch: int) -> None:
    engine = Engine(folder, threads=1)
    features = TextSource(engine).encode(PROMPTS[:batch])
    ours = engine.generate(features.text, features.lengths, range(3, 3 + batch)).pixels
    text = torch.from_numpy(features.text), torch.from_numpy(features.lengths)
    with torch.inference_mode():
        summed, _ = draw(schedule, profile, batch, seed=3, given=text)
        expected = small_model()[1].image_decoder()(summed).clamp(-1, 1).numpy()
    assert float(expected.std()) > 0.05
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hart") / "engine"
    _build(small_profile(), everything_at_once(small_profile()), folder)
    return folder


@pytest.mark.parametrize("batch", [1, 2])
def test_onnx_runtime_equals_torch(everything: Path, batch: int) -> None:
    _compare(everything, small_profile(), everything_at_once(small_profile()), batch)


def test_hard_codes_without_guidance(tmp_path: Path) -> None:
    profile = small_profile(more_smooth=False, top_p=0.8, cfg=0.0)
    profile = replace(profile, transformer=replace(profile.transformer, patch_nums=(1, 3)))
    _build(profile, dense(profile), tmp_path / "engine")
    _compare(tmp_path / "engine", profile, dense(profile), batch=2)


def test_large_weights_keep_their_names(everything: Path) -> None:
    """Constants that are no weights are the small tables of positions, levels and diffusion steps."""
    with safe_open(everything / WEIGHTS, framework="np") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in sorted(file.keys())}
    own, vae = small_model()
    names = {f"transformer.{name}" for name in own.state_dict()} | {f"vae.quantize.{n}" for n in vae.quantize.state_dict()}
    names |= {f"vae.decoder.{name}" for name in vae.image_decoder().state_dict()}
    assert all(name.startswith("constants.") for name in sizes.keys() - names), sizes.keys() - names
    assert sum(nbytes for name, nbytes in sizes.items() if name.startswith("constants.")) < 20_000


def test_graphs_have_no_operator_that_tensorrt_lacks(everything: Path) -> None:
    for path in sorted(everything.glob("*.onnx")):
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert not kinds & {"SplitToSequence", "SequenceAt", "Loop", "If", "Scan"}, (path.name, kinds)
