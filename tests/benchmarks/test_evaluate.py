"""`toprovar eval`: what it measures, what it refuses, and GenEval's folders that resume."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from made_costs import made_table
from PIL import Image
from small_model import write_profile
from small_rungs import with_rungs
from toprovar.benchmarks.evaluate import clip, geneval
from toprovar.benchmarks.evaluate.cli import main as evaluate
from toprovar.benchmarks.evaluate.drawing import Drawer, tally
from toprovar.benchmarks.evaluate.outcome import Job, Tally, jobs_of
from toprovar.benchmarks.evaluate.scenes import paired
from toprovar.benchmarks.evaluate.summary import predicted_ms
from toprovar.compile.cli import main as build_engine
from toprovar.profiles.errors import ToprovarError
from toprovar.profiles.fidelity import psnr, squared_error, ssim

ENTRIES = [{"tag": "colors", "prompt": "a red star"}, {"tag": "counting", "prompt": "two rings"}]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of the small model, dense and skip-1, prompts and a metadata file."""
    folder = tmp_path_factory.mktemp("eval")
    profile = str(write_profile(folder / "small.yaml"))
    for policy in ("dense", "skip-1"):
        command = ["--policy", policy, "--model", profile, "--weights", "random", "--out", str(folder / policy)]
        assert build_engine(command) == 0
    (folder / "prompts.txt").write_text("a red star\ntwo rings\n")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    made_table().save(folder / "costs.json")
    return folder


def flags(work: Path, *more: str) -> list[str]:
    return ["--engine", str(work / "skip-1"), "--reference", str(work / "dense"), "--warm-up", "0", *more]


def test_fidelity_is_that_of_the_images(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "fidelity.json"
    options = ["--prompts", str(work / "prompts.txt"), "--seeds", "2", "--seed", "5", "--costs", str(work / "costs.json")]
    assert evaluate(flags(work, *options, "--out", str(out))) == 0
    result = json.loads(out.read_text())
    reference, own = result["engines"]
    assert (result["prompts"], result["seeds"], reference["psnr_db"], reference["equal_images"]) == (2, 2, None, 4)
    drawers = [Drawer(work / name) for name in ("dense", "skip-1")]
    jobs = jobs_of(["a red star", "two rings"], 5, 2)
    assert [job.seed for job in jobs] == [5, 6, 7, 8]
    images = [[drawer.draw(job).pixels for job in jobs] for drawer in drawers]
    pairs = list(zip(*images, strict=True))
    assert own["psnr_db"] == pytest.approx(np.mean([psnr(squared_error(a, b)) for a, b in pairs]), abs=0.01)
    assert own["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in pairs]), abs=1e-3)
    predicted = made_table().predict(drawers[1].engine.schedule)
    assert own["predicted_ms"] == pytest.approx(predicted, abs=0.1)
    assert "predicted ms" in capsys.readouterr().out


def test_prediction_of_mixed_paths_is_the_median_of_those_timed() -> None:
    """Red before: the mean of all images stood beside the median of the timed ones."""
    schedule, costs = with_rungs("detail"), made_table()
    drawer = SimpleNamespace(engine=SimpleNamespace(schedule=schedule))
    tally = Tally(latency_ms=[3.0, 1.0, 3.0], rungs=["whole", "short", "whole", "short", "short", "short"])
    expected = round(7.0 + costs.predict(schedule.paths[0]), 3)
    assert predicted_ms(costs, drawer, tally) == expected  # type: ignore[arg-type]
    assert costs.predict(schedule.paths[0]) > costs.predict(schedule.paths[2]) + 1


def test_a_point_that_no_cost_table_has_leaves_the_prediction_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red before: one schedule outside the table ended a whole comparison."""
    whole = made_table()
    replace(whole, layers=tuple(entry for entry in whole.layers if entry.scale != 3)).save(work / "few_costs.json")
    options = ["--prompts", str(work / "prompts.txt"), "--costs", str(work / "few_costs.json")]
    assert evaluate(flags(work, *options, "--out", str(work / "few.json"))) == 0
    assert all(engine["predicted_ms"] is None for engine in json.loads((work / "few.json").read_text())["engines"])
    said = capsys.readouterr()
    assert "skip-1: no prediction: cost table of small on onnx: no measured point covers scale 3" in said.err
    assert "predicted ms" in said.out


def test_reference_images_are_kept_beyond_the_timed_ones(work: Path, tmp_path: Path) -> None:
    drawers = [Drawer(work / name) for name in ("dense", "skip-1")]
    jobs = jobs_of(["a red star", "two rings"], 0)
    first = tally(drawers, jobs, warm_up=0, timed=1, kept=tmp_path)
    assert [len(t.latency_ms) for t in first] == [1, 1]
    assert len(list(tmp_path.glob("*.png"))) == 2
    drawn: list[Job] = []
    draw = drawers[0].draw
    drawers[0].draw = lambda job: drawn.append(job) or draw(job)  # type: ignore[method-assign,func-returns-value]
    again = tally(drawers, jobs, warm_up=0, timed=1, kept=tmp_path)
    assert drawn == jobs[:1]
    assert again[1].error == first[1].error


def test_paired_interval_holds_what_it_promises() -> None:
    """Of 400 experiments with a known difference, about 95 % cover it, and far fewer images than unpaired are needed."""
    rng, truth, covered = random.Random(0), 0.02, 0
    for _ in range(400):
        base = [rng.random() < 0.8 for _ in range(600)]
        own = [(rng.random() < 0.95) if right else (rng.random() < 0.3) for right in base]
        found = paired(own, base)
        covered += found.low <= truth <= found.high
        assert found.difference == pytest.approx((sum(own) - sum(base)) / 600)
    assert 0.92 <= covered / 400 <= 0.98
    equal = paired([True] * 300, [True] * 300)
    assert (equal.gained, equal.lost, equal.difference) == (0, 0, 0.0)
    assert equal.low < 0 < equal.high < 0.02


def test_images_for_a_point_are_enough() -> None:
    pattern = [(True, True)] * 16 + [(False, False)] * 3 + [(True, False)]
    few = paired(*zip(*(pattern * 20), strict=True))
    many = pattern * math.ceil(few.images_for_a_point / len(pattern))
    found = paired(*zip(*many, strict=True))
    assert (found.high - found.low) / 2 <= 0.0101


def test_scene_suite_judges_every_seed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "scene.json"
    assert evaluate(flags(work, "--suite", "scene", "--limit", "1", "--seeds", "2", "--out", str(out))) == 0
    scene = json.loads(out.read_text())["engines"][1]["scene_eval"]
    assert scene["images"] == 12
    assert len(scene["tasks"]) == 6
    assert scene["paired"]["low"] <= scene["paired"]["difference"] <= scene["paired"]["high"]
    assert "for 1 point to be significant at 95 % it takes about" in capsys.readouterr().out


def test_geneval_folders_resume(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--engine", str(work / "skip-1"), "--suite", "geneval", "--metadata", str(work / "metadata.jsonl")]
    command += ["--images", str(tmp_path), "--samples", "2"]
    assert evaluate(command) == 0
    folder = tmp_path / "skip-1"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files[:3] == ["00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png"]
    assert len(files) == 6
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text()) == ENTRIES[1]
    before = {name: (folder / name).read_bytes() for name in files}
    image = Image.open(folder / "00001" / "samples" / "0000.png")
    assert image.text["prompt"] == "two rings"  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(image), Drawer(work / "skip-1").draw(Job("two rings", 2)).pixels)
    (folder / files[2]).write_bytes(b"cut off")
    (folder / files[1]).unlink()
    capsys.readouterr()
    assert evaluate(command) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[-2:] == ["2", "2"]
    assert {name: (folder / name).read_bytes() for name in files} == before


def test_metadata_must_be_genevals(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    for text, message in (("{", "line 1 is not JSON"), ('{"prompt": "x"}', "line 1 has no tag and prompt"), ("", "no prompts")):
        path.write_text(text)
        with pytest.raises(ToprovarError, match=message):
            geneval.read_metadata(path)


def test_clip_score_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.multimodal.clip_score", None)
    with pytest.raises(ToprovarError, match="pip install torchmetrics"):
        clip.clip_scorer()
    module = ModuleType("clip_score")

    def refuse(model_name_or_path: str) -> None:
        raise OSError(f"{model_name_or_path} is not a folder")

    module.CLIPScore = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics.multimodal.clip_score", module)
    with pytest.raises(ToprovarError, match="--clip-model none: cannot be loaded"):
        clip.clip_scorer("none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "fidelity"], "--suite fidelity needs --prompts"),
        (["--suite", "geneval"], "--suite geneval needs --metadata"),
        (["--suite", "scene", "--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_refusals(work: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(flags(work, *options)) == 2
    assert message in capsys.readouterr().err
