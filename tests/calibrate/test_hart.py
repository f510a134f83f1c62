"""Calibration of HART by the command: what its text counts as, what is refused, and a search."""

from __future__ import annotations

from pathlib import Path

import pytest
from hart_model import write_hart_profile
from toprovar.calibrate.cli import main as calibrate
from toprovar.profiles.schedule import Schedule


@pytest.fixture
def common(tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue stars beside a cup that stands on a table\n")
    model = ["--model", str(write_hart_profile(tmp_path / "hart.yaml")), "--weights", "random"]
    return [*model, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]


def test_measured_scheduled_and_reported(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate([*common, "--target-speedup", "1.8"]) == 0
    told = capsys.readouterr()
    assert "1 of 2 prompts are longer than the text encoder takes (7 tokens)" in told.err
    assert "1.8" in told.out.splitlines()[0]
    schedule = Schedule.load(tmp_path / "out" / "schedule.yaml")
    assert any(rule.prunes_tokens for rule in schedule.scales)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "transformer only, text of 7 tokens, padding included.</p>" in page


def test_searched(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate([*common, "--policy", "auto", "--target-speedup", "1.5"]) == 0
    assert "on 1 held-out prompt\n" in capsys.readouterr().out
    assert Schedule.load(tmp_path / "out" / "schedule.yaml").provenance["auto"]["chosen"]["speedup"] >= 1.5


def test_what_cannot_be_is_told_in_one_line(common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--policy", "skipvar"], "too few to look at one before the last 3"),
        (["--policy", "noguide-1", "--cfg", "0"], "runs without guidance at this cfg"),
        (["--text-encoder", "/nowhere"], "/nowhere: is no folder here, and HART needs its language model in one"),
    ):
        assert calibrate([*common, *options]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
