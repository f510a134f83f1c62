"""The ablation: scores that replace the map do what the schedule's own score does, and tables hold what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_model import PROMPTS, small_model, small_profile, write_profile
from toprovar.benchmarks.ablation import main, pivoted
from toprovar.benchmarks.token_scores import SCORES, ScoreTrials, pruned
from toprovar.calibrate.search.trials import Trials

PROFILE = small_profile()
LAST = len(PROFILE.sizes) - 1
SEEDED = [(PROMPTS[0], 7), (PROMPTS[1], 8)]


@pytest.mark.parametrize("score", ["entropy low", "random"])
@pytest.mark.parametrize("fill", ["hold", "cache"])
def test_own_scores_are_those_of_the_schedule(score: str, fill: str) -> None:
    schedule = pruned(PROFILE, LAST, 0.5, fill, score)
    found = ScoreTrials(small_model(), SEEDED).measure([(schedule, score)])[0]
    expected = Trials(small_model(), SEEDED, "", with_ssim=True).measure([schedule])[0]
    assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-6)
    assert found.similarity == pytest.approx(expected.similarity, rel=1e-6)


def test_high_keeps_what_low_drops() -> None:
    trials = ScoreTrials(small_model(), SEEDED[:1])
    with torch.inference_mode():
        states, noise = trials.trials.dense_states(*SEEDED[0])
        for name in ("entropy", "uncertainty", "change"):
            low, high = (trials.score_map(states, noise, LAST, f"{name} {end}") for end in ("low", "high"))
            assert torch.equal(low, -high)
            assert low.shape[:2] == (1, 1)
            assert float(low.std()) > 0
        sure = trials.score_map(states, noise, LAST, "uncertainty low")
    # entropy of a bit is at most log 2
    assert 0 <= float(sure.min()) <= float(sure.max()) <= 0.6932


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS[0])
    command = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--prompts", str(prompts)]
    assert main([*command, "--only", "tokens", "--scales", str(LAST), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "ablation.json").read_text())["tokens"]
    assert {row["score"] for row in rows} == set(SCORES)
    by_fill = {(row["share"], row["fill"]): set() for row in rows}
    for row in rows:
        by_fill[row["share"], row["fill"]].add(row["flops_speedup"])
    assert all(len(found) == 1 for found in by_fill.values())
    assert "entropy high" in capsys.readouterr().out
    assert main([*command, "--scales", "99", "--out", str(tmp_path)]) == 2
    assert f"--scales must be 1 to {LAST}" in capsys.readouterr().err


def test_pivot_names_what_is_not_reached() -> None:
    rows = [
        {"dimensions": "layer only", "asked": 2.0, "psnr_db": 30.0, "flops_speedup": 2.1},
        {"dimensions": "layer only", "asked": 9.0, "psnr_db": None, "flops_speedup": None},
    ]
    assert pivoted(rows, ("dimensions",), "asked") == [["dimensions", "2x", "9x"], ["layer only", "30.00 (2.10x)", "-"]]
