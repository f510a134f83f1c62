"""Plans of VAR and HART with rungs: TensorRT-RTX builds every kind of graph, and what they compute is the onnx target's.

VAR decides by entropy, HART by what its first scales look like. One layer and three scales hold every kind of graph that a
family has: its first scale, a whole one that writes the entropy, a pruned last one that reads it, the view.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hart_model
import numpy as np
import pytest
import torch
from plan_bundles import as_plans, opened
from plan_checks import check_precision, check_tensors, check_weights
from recording_tensorrt import recording
from small_rungs import decided_by
from small_var import small_var_profile
from tensorrt_link_stubs import stubbed_tensorrt
from tensorrt_run_time import RecordingTensorRT
from toprovar.cli import main as toprovar
from toprovar.compile.build_report import REPORT, report_table
from toprovar.compile.bundle import build_bundle
from toprovar.compile.plan_options import PlanOptions
from toprovar.compile.plans import PlanBuilder
from toprovar.compile.report_page import PAGE
from toprovar.compile.tensorrt_flavours import FLAVOURS, Toolkit, toolkit
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.baselines import dense
from toprovar.profiles.decision import Decision, thresholds
from toprovar.profiles.manifest import EngineManifest
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.rules import Rung
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource

GRIDS = (1, 2, 4)
PROMPTS = {"var": ("3", "7", "0"), "hart": ("a red circle", "two blue stars beside a cup", "a cup")}
NAMES = ("fewer", "short")
ENDS = {"fewer": ["scale_02.plan"], "short": []}


def var_model() -> LoadedModel:
    profile = small_var_profile(depth=1, patch_nums=GRIDS)
    return load_model(profile, WeightOptions(weights="random"), torch.float16)


def hart_of_fp16() -> LoadedModel:
    profile = hart_model.small_profile({"depth": 1, "patch_nums": GRIDS, "diffusion_steps": 2})
    transformer, vae = hart_model.made(profile)
    model = hart_model.loaded(profile, transformer.half(), vae.half())
    return replace(model, text_source={"kind": "random", "seed": 0})


def schedule_of(family: str, profile: ModelProfile) -> Schedule:
    """The last scale with half its tokens, or not at all; VAR holds the others and drops guidance, HART caches them."""
    base = replace(dense(profile), entropy_layer=0)
    *rules, last = base.scales
    short, kept = replace(last, run=False), (last.count // 2,)
    if family == "var":
        last = replace(last, guidance=False, tokens=TokenRule(kept=kept))
        decision = Decision(scale=1, features="entropy", models=(thresholds(0, (0.0,), NAMES),))
    else:
        last = replace(last, tokens=TokenRule(kept=kept, fill="cache", cache_scale=1))
        decision = Decision(scale=1, features="detail", view=1, models=(thresholds(0, (0.0,), NAMES, "detail"),))
    rungs = (Rung(name=NAMES[0]), Rung(name=NAMES[1], scales=(short,)))
    return replace(base, policy="rungs", scales=(*rules, last), rungs=rungs, decision=decision)


@dataclass(frozen=True)
class Built:
    """A bundle, and how it is built again with the same graphs."""

    family: str
    folder: Path
    again: Callable[[PlanBuilder, Path], EngineManifest]


@pytest.fixture(scope="module", params=["var", "hart"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")
    family, folder = str(request.param), tmp_path_factory.mktemp("families")
    model = var_model() if family == "var" else hart_of_fp16()
    schedule = schedule_of(family, model.profile)

    def build(builder: PlanBuilder, out: Path) -> EngineManifest:
        return build_bundle(model, schedule, out, model.text_source, lambda _: None, builder)

    build(PlanBuilder(toolkit("tensorrt-rtx"), options("tensorrt-rtx", (89,), model.profile)), folder / "engine")
    return Built(family, folder / "engine", build)


def options(target: str, sm: tuple[int, ...], profile: ModelProfile) -> PlanOptions:
    return PlanOptions(target=target, sm=sm, max_batch=3, max_text=profile.text.max_length, timing_cache="none")


def test_rtx_builds_every_graph_as_the_manifest_says(built: Built) -> None:
    manifest = EngineManifest.load(built.folder)
    manifest.verify(built.folder)
    assert (manifest.target, manifest.precision) == ("tensorrt-rtx", "fp16")
    check_tensors(built.folder)
    check_precision(built.folder)
    check_weights(built.folder)
    plans = sorted(path.stem for path in built.folder.glob("*.plan"))
    own = {"var": [], "hart": ["view"]}[built.family]
    assert plans == ["condition", "decoder", *(f"scale_0{i}" for i in range(3)), *own]


def test_report_and_inspect_tell_which_plans_a_rung_runs(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((built.folder / REPORT).read_text())
    assert content["rungs"] == ENDS
    assert toprovar(["inspect", str(built.folder)]) == 0
    inspected, page = capsys.readouterr().out, (built.folder / PAGE).read_text()
    for name, files in ENDS.items():
        shown = ", ".join(files) or "nothing"
        for text in (report_table(content), inspected):
            assert [name, *shown.split()] in [line.split() for line in text.splitlines()]
        assert f"<tr><th>Rung {name}, after the decision</th><td><code>{shown}</code></td></tr>" in page


def test_a_batch_that_splits_is_the_onnx_targets_bit_for_bit(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three images pick the first rung, one the second; then each alone."""
    seen, pick = list[Any](), Decision.pick
    monkeypatch.setattr(Decision, "pick", lambda self, features: (seen.append(features), pick(self, features))[1])
    engine, prompts, seeds = Engine(built.folder, threads=1), PROMPTS[built.family], (11, 12, 13)
    text, lengths, _ = TextSource(engine).encode(prompts)
    engine.generate(text, lengths, seeds)
    values = np.sort(seen[0][:, 0])[1:]
    folder = decided_by(built.folder, tmp_path / "engine", NAMES, values)
    planned = as_plans(folder, tmp_path / "plans", "tensorrt-rtx")
    reference, (plans, _) = Engine(folder, threads=1), opened(planned, RecordingTensorRT(rtx=True))
    for images in ([0, 1, 2], [2], [1, 0]):
        asked = (text[images], lengths[images], [seeds[image] for image in images])
        ours, theirs = plans.generate(*asked), reference.generate(*asked)
        assert ours.rungs == theirs.rungs
        assert len(images) < 3 or sorted(ours.rungs) == ["fewer", "fewer", "short"]
        assert np.isfinite(ours.pixels).all()
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_tensorrt_builder_takes_the_same_graphs(built: Built, tmp_path: Path) -> None:
    """Every call is one that NVIDIA's own bindings accept; the attention whose entropy is read is a plugin."""
    calls: list[Any] = []
    with stubbed_tensorrt() as trt:
        profile = EngineManifest.load(built.folder).model_profile()
        kit = Toolkit(FLAVOURS["tensorrt"], recording(trt, calls))
        manifest = built.again(PlanBuilder(kit, options("tensorrt", (90,), profile)), tmp_path / "engine")
    assert manifest.target == "tensorrt"
    check_tensors(tmp_path / "engine")
    check_precision(tmp_path / "engine")
    check_weights(tmp_path / "engine")
    plugins = {file: plan["plugins"] for file, plan in manifest.engine["plans"].items()}
    assert {file for file, count in plugins.items() if count} == {"scale_01.plan"}
    assert [call[0] for call in calls].count("build_serialized_network") == len(plugins) == len(manifest.graphs)
    ranges = {call[1]: call[2:] for call in calls if call[0] == "set_shape"}
    # keys of scale 2, of one image, of one and of three; VAR dropped its second rows, HART's text comes first
    rows, text = (1, 0) if built.family == "var" else (2, profile.transformer.text_tokens - 1)
    assert ranges["k.0"] == tuple((rows * images, 2, 5 + text, 32) for images in (1, 1, 3))
    assert ranges["summed"] == ((1, 8, 4, 4), (1, 8, 4, 4), (3, 8, 4, 4))
