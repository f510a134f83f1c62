"""A model of classes under `eval` and `sweep`: what asks for texts is refused in one line, fidelity is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_var import write_var_profile
from toprovar.benchmarks.evaluate.cli import main as evaluate
from toprovar.benchmarks.sweep.cli import main as sweep
from toprovar.compile.cli import main as build_engine

REFUSAL = "asks for texts, small-var draws classes; compare it by fidelity"


def test_suites_of_texts_are_refused_and_classes_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SceneEval and GenEval told a user of VAR to name a file of class names, which would not have helped."""
    profile, engine = write_var_profile(tmp_path / "var.yaml", patch_nums=(1, 2)), str(tmp_path / "dense")
    model = ["--model", str(profile), "--weights", "random"]
    assert build_engine(["--policy", "dense", *model, "--out", engine]) == 0
    assert f"--engine {engine} --prompt 0\n" in capsys.readouterr().out
    assert evaluate(["--engine", engine, "--reference", engine, "--suite", "scene", "--limit", "1"]) == 2
    assert f"SceneEval {REFUSAL}" in capsys.readouterr().err
    (tmp_path / "geneval.jsonl").write_text('{"tag": "colors", "prompt": "a red star"}\n')
    geneval = ["--metadata", str(tmp_path / "geneval.jsonl"), "--images", str(tmp_path / "images")]
    assert evaluate(["--engine", engine, "--suite", "geneval", *geneval]) == 2
    assert f"GenEval {REFUSAL}" in capsys.readouterr().err
    assert sweep(["--scene-eval", "--policies", "skip-1", *model, "--out", str(tmp_path / "sweep")]) == 2
    assert f"SceneEval {REFUSAL}" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("3\n7\n")
    options = ["--prompts", str(tmp_path / "classes.txt"), "--warm-up", "0", "--out", str(tmp_path / "eval.json")]
    assert evaluate(["--engine", engine, "--reference", engine, *options]) == 0
    own = json.loads((tmp_path / "eval.json").read_text())["engines"][1]
    assert (own["equal_images"], own["psnr_db"]) == (2, None)
