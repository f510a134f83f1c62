"""Bundles with rungs: one copy of what rungs share, each image of a batch as its rung alone draws it, refusals.

Plans are run by the stand-in of TensorRT (`tensorrt_run_time`), on the very graphs that ONNX Runtime runs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_bundles import MACHINES, as_plans, opened
from small_model import PROMPTS, small_model, small_profile, write_profile
from small_rungs import decided_by, measured, text_and_noise, with_rungs
from tensorrt_run_time import RecordingTensorRT
from toprovar.cli import main as toprovar
from toprovar.compile.bundle import build_bundle
from toprovar.compile.cli import main as build_engine
from toprovar.compile.graph_files import graph_files
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.baselines import baseline
from toprovar.profiles.errors import BundleError, ScheduleError
from toprovar.profiles.manifest import WEIGHTS, EngineManifest
from toprovar.profiles.plan import schedule_flops
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.cli import main as run_engine
from toprovar.runtime.engine import Engine
from toprovar.runtime.loop import Images
from toprovar.runtime.preflight import preflight
from toprovar.runtime.tensorrt_engine import PROGRAMS, TEXT_STEP
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


@pytest.fixture(scope="module")
def skipvar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released policy, built by the command."""
    folder = tmp_path_factory.mktemp("skipvar")
    model = ["--model", str(write_profile(folder / "small.yaml")), "--weights", "random"]
    assert build_engine(["--policy", "skipvar", *model, "--out", str(folder / "engine")]) == 0
    return folder / "engine"


def test_commands_inspect_and_run_skipvar(skipvar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert toprovar(["inspect", str(skipvar)]) == 0
    shown = capsys.readouterr().out
    assert "each image picks one after scale 3" in shown
    prompt = ["--engine", str(skipvar), "--prompt", PROMPTS[0], "--num-images", "3", "--batch", "2"]
    assert run_engine([*prompt, "--output", str(tmp_path / "images"), "--log-format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rungs = {rung.name for rung in baseline("skipvar", small_profile()).rungs}
    assert len(records) == 3
    assert {record["rung"] for record in records} <= rungs


def padded(engine: Engine, images: list[int]) -> tuple[Any, Any, list[int]]:
    """Features as plans pad them, so that the sums have the same order."""
    text, lengths, _ = TextSource(engine).encode([PROMPTS[i] for i in images])
    return np.pad(text, ((0, 0), (0, -text.shape[1] % TEXT_STEP), (0, 0))), lengths, images


def assert_same(plans: Engine, reference: Engine, images: list[int]) -> tuple[str, ...]:
    """Both engines pick and draw the same, bit for bit; returns what was picked."""
    asked = padded(reference, images)
    ours, theirs = plans.generate(*asked), reference.generate(*asked)
    assert ours.rungs == theirs.rungs
    assert np.array_equal(ours.pixels, theirs.pixels)
    return ours.rungs


def test_plans_pick_and_draw_as_the_onnx_target(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A batch that splits three ways, parts of it in another order, and the first one again."""
    reference, (engine, trt) = Engine(bundles["entropy"], threads=1), opened(as_plans(bundles["entropy"], tmp_path / "engine"))
    picked = assert_same(engine, reference, [0, 1, 2, 3])
    assert sorted(picked) == ["fewer", "fewer", "short", "whole"]
    ends = [[scale.graph.file for scale in rung.scales] for rung in reference.manifest.rungs]
    programs = [["condition.onnx", *(f"scale_{i:02d}.onnx" for i in range(5))], *ends, ["decoder.onnx"]]
    # each program has one warm run and one replay
    assert trt.ran == [file for program in programs for file in program * 2]
    assert assert_same(engine, reference, [3, 1]) == (picked[3], picked[1])
    made, ran = len(trt.contexts), len(trt.ran)
    assert assert_same(engine, reference, [0, 1, 2, 3]) == picked
    assert len(trt.contexts) == made
    assert trt.ran[ran:] == [file for program in programs for file in program]
    found: dict[str, set[int]] = {}
    for context in trt.contexts:
        graph = engine._plans[context._engine.path.with_suffix(".plan").name].graph
        for name, tensor in graph.weights.items():
            found.setdefault(tensor, set()).add(context.addresses[name])
    assert {len(addresses) for addresses in found.values()} == {1}


def test_plans_of_skipvar_split_a_batch_as_the_onnx_target(skipvar: Path, tmp_path: Path) -> None:
    """The released models pick one rung for all random images: with limits of its own, the four prompts pick four."""
    names = ("skip-3", "noguide-3", "skip-2", "noguide-1")
    values = measured("detail", small_profile(), [0, 1, 2, 3], decided=3)[:, 0]
    folder = decided_by(skipvar, tmp_path / "engine", names, values)
    plans = as_plans(folder, tmp_path / "plans", "tensorrt-rtx")
    reference, (engine, trt) = Engine(folder, threads=1), opened(plans, RecordingTensorRT(rtx=True))
    assert set(assert_same(engine, reference, [0, 1, 2, 3])) == set(names)
    assert trt.ran.count("view.onnx") == 4
    asked = padded(reference, [0, 1, 2, 3])
    programs = ["first scales", *(f"rung {name}" for name in ("noguide-1", "noguide-3", "skip-2")), "decoder"]
    assert list(engine.generate(*asked).milliseconds) == programs


def test_rungs_without_graphs_of_many_plans(bundles: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Times are then told plan by plan; a rung of one plan has its graph."""
    reference, folder = Engine(bundles["entropy"], threads=1), as_plans(bundles["entropy"], tmp_path / "engine")
    asked = padded(reference, [0, 1, 2, 3])
    with caplog.at_level(logging.WARNING):
        images = opened(folder, whole=False)[0].generate(*asked)
    shared = ["condition", *(f"scale {i}" for i in range(5))]
    tails = [f"{rung}: scale {i}" for rung in ("whole", "fewer") for i in (5, 6)]
    assert list(images.milliseconds) == [*shared, *tails, "rung short", "decoder"]
    assert "rung fewer: no CUDA graph of it as a whole; plans that run without one: none" in caplog.messages
    assert np.array_equal(images.pixels, reference.generate(*asked).pixels)


def test_only_so_many_shapes_of_rungs_stay(bundles: dict[str, Path], tmp_path: Path) -> None:
    engine, _ = opened(as_plans(bundles["entropy"], tmp_path / "engine"))
    most = PROGRAMS * (1 + len(engine.manifest.rungs))
    for rows in range(1, 5):
        for length in range(1, most // 4 + 2):
            engine.words(np.ones((rows, length), dtype=np.int64))
    assert len(engine._programs) == most


def test_inspect_and_preflight_know_the_plans_of_rungs(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = as_plans(bundles["detail"], tmp_path / "engine")
    manifest = EngineManifest.load(folder)
    assert preflight(folder, manifest, MACHINES["tensorrt"]) == ()
    assert toprovar(["inspect", str(folder)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("whole scale_05.plan, scale_06.plan", "fewer scale_05_2.plan, scale_06_2.plan", "short scale_05.plan"):
        assert line in lines
    for plan in ("scale_06_2.plan", "view.plan"):
        assert sum(line.startswith(f"{plan} ") for line in lines) == 2
        (folder / plan).unlink()
    with pytest.raises(BundleError, match=r"scale_06_2\.plan is missing; view\.plan is missing"):
        preflight(folder, manifest, MACHINES["tensorrt"])


def test_dry_run_counts_what_rungs_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rungs `noguide-1` to `-3` and `skip-1` to `-3` run 7, 7, 7, 6, 5 and 4 scales, in 9 graphs."""
    model = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--dry-run"]
    assert build_engine(["--policy", "skipvar", *model, "--target", "tensorrt-rtx", "--sm", "89"]) == 0
    shown = capsys.readouterr().out
    assert "each image picks one after scale 3" in shown
    assert "13 plans of about" in shown
    assert "rungs        6 of 36 scales in all, in 9 graphs" in shown


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = replace(small_model(), profile=small_profile().with_options(cfg=1.0))
    with pytest.raises(ScheduleError, match="without guidance"):
        build_bundle(other, with_rungs("entropy"), tmp_path / "engine", TEXT, lambda _: None)
