"""Bundles with rungs: one copy of what rungs share, each image of a batch as its rung alone draws it, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import PROMPTS, small_model, small_profile, write_profile
from small_rungs import text_and_noise, with_rungs
from toprovar.compile.bundle import build_bundle, graph_files
from toprovar.compile.cli import main as build_engine
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.baselines import baseline
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.manifest import WEIGHTS, EngineManifest
from toprovar.profiles.plan import schedule_flops
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.cli import main as run_engine
from toprovar.runtime.engine import Engine
from toprovar.runtime.loop import Images
from toprovar.runtime.text import TextSource

TEXT = {"kind": "words"}
FEATURES = ("entropy", "detail")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rungs")
    for features in FEATURES:
        build_bundle(small_model(), with_rungs(features), folder / features, TEXT, lambda _: None)
    return {features: folder / features for features in FEATURES}


def engine_images(engine: Engine, images: list[int]) -> Images:
    features = TextSource(engine).encode([PROMPTS[i] for i in images])
    return engine.generate(features.text, features.lengths, images)


def torch_images(schedule: Schedule, images: list[int]) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    summed, picked = generate_rungs(build_rungs(small_model(), schedule), *text_and_noise(small_profile(), images))
    with torch.inference_mode():
        return small_model().decoder(summed).clamp(-1, 1).numpy(), picked


@pytest.mark.parametrize("features", FEATURES)
def test_onnx_runtime_picks_and_draws_as_torch(bundles: dict[str, Path], features: str) -> None:
    """A batch that splits three ways, put together again in order; each image alone is the same."""
    engine = Engine(bundles[features], threads=1)
    together = engine_images(engine, [0, 1, 2, 3])
    pixels, picked = torch_images(with_rungs(features), [0, 1, 2, 3])
    assert set(picked) == {"whole", "fewer", "short"}
    assert together.rungs == picked
    np.testing.assert_allclose(together.pixels, pixels, rtol=0, atol=1e-3)
    for image in range(4):
        alone = engine_images(engine, [image])
        assert alone.rungs == (picked[image],)
        np.testing.assert_allclose(alone.pixels[0], together.pixels[image], rtol=0, atol=1e-3)


def test_images_do_not_depend_on_order_or_company(bundles: dict[str, Path]) -> None:
    engine = Engine(bundles["entropy"], threads=1)
    first, other = engine_images(engine, [0, 1, 2, 3]), engine_images(engine, [3, 1])
    assert other.rungs == (first.rungs[3], first.rungs[1])
    np.testing.assert_allclose(other.pixels, first.pixels[[3, 1]], rtol=0, atol=1e-3)


def test_shared_graphs_and_weights_are_stored_once(bundles: dict[str, Path]) -> None:
    """Three rungs run 7, 7 and 6 scales; 5 are shared, and rung `short` ends with a scale that rung `whole` runs too."""
    manifest = EngineManifest.load(bundles["detail"])
    files = sorted(path.name for path in bundles["detail"].glob("scale_*.onnx"))
    assert files == [*(f"scale_{i:02d}.onnx" for i in range(6)), "scale_05_2.onnx", "scale_06.onnx", "scale_06_2.onnx"]
    assert [scale.scale for scale in manifest.scales] == [0, 1, 2, 3, 4]
    ends = {rung.name: [scale.graph.file for scale in rung.scales] for rung in manifest.rungs}
    assert ends == {
        "whole": ["scale_05.onnx", "scale_06.onnx"],
        "fewer": ["scale_05_2.onnx", "scale_06_2.onnx"],
        "short": ["scale_05.onnx"],
    }
    assert set(graph_files(with_rungs("detail"))) == set(files) | {"condition.onnx", "decoder.onnx", "view.onnx"}
    modules = (small_model().transformer, small_model().vae.decoder, small_model().text.encoder)  # type: ignore[attr-defined]
    parameters = sum(p.numel() * 4 for module in modules for p in module.parameters())
    assert (bundles["detail"] / WEIGHTS).stat().st_size < 1.1 * parameters
    speedups = [rung.flops_speedup for rung in manifest.rungs]
    flops = [schedule_flops(path, small_profile()) for path in with_rungs("detail").paths]
    assert speedups == pytest.approx([flops[0] / other for other in flops])
    assert manifest.flops_speedup == 1


def test_only_decisions_that_look_at_images_decode_them(bundles: dict[str, Path]) -> None:
    assert EngineManifest.load(bundles["entropy"]).view is None
    assert not (bundles["entropy"] / "view.onnx").exists()
    names = engine_images(Engine(bundles["detail"], threads=1), [0]).milliseconds
    assert [name for name in names if name.startswith("view")] == ["view before", "view after"]


def test_bundles_without_rungs_say_nothing_of_them(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A manifest of an earlier version has neither key, and still loads."""
    path = bundles["entropy"] / "manifest.json"
    data = json.loads(path.read_text())
    del data["rungs"], data["view"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    manifest = EngineManifest.load(tmp_path)
    assert (manifest.rungs, manifest.view) == ((), None)


def test_commands_build_inspect_and_run_skipvar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random"]
    assert build_engine(["--policy", "skipvar", *model, "--out", str(tmp_path / "engine")]) == 0
    assert "each image picks one after scale 3" in capsys.readouterr().err
    prompt = ["--engine", str(tmp_path / "engine"), "--prompt", PROMPTS[0], "--num-images", "3", "--batch", "2"]
    assert run_engine([*prompt, "--output", str(tmp_path / "images"), "--log-format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rungs = {rung.name for rung in baseline("skipvar", small_profile()).rungs}
    assert len(records) == 3
    assert {record["rung"] for record in records} <= rungs


def test_plans_of_rungs_are_refused_before_anything_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--policy", "skipvar", "--target", "tensorrt-rtx", "--sm", "89", "--out", str(tmp_path / "engine")]
    assert build_engine(arguments) == 2
    assert "lets each image pick a rung" in capsys.readouterr().err
    assert not (tmp_path / "engine").exists()


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = replace(small_model(), profile=small_profile().with_options(cfg=1.0))
    with pytest.raises(ScheduleError, match="without guidance"):
        build_bundle(other, with_rungs("entropy"), tmp_path / "engine", TEXT, lambda _: None)
