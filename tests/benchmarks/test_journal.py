"""An interrupted `toprovar eval` goes on: nothing is drawn twice, and the results are those of an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_model import write_profile
from toprovar.benchmarks.evaluate.cli import main as evaluate
from toprovar.benchmarks.evaluate.drawing import Drawer, Drawn
from toprovar.benchmarks.evaluate.outcome import Job
from toprovar.compile.cli import main as build_engine


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense bundle and two of skip-1 that differ in their folder only."""
    folder = tmp_path_factory.mktemp("journal")
    profile = str(write_profile(folder / "small.yaml"))
    for name, policy in (("dense", "dense"), ("one", "skip-1"), ("two", "skip-1")):
        command = ["--policy", policy, "--model", profile, "--weights", "random", "--out", str(folder / name)]
        assert build_engine(command) == 0
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Job]]:
    """What is drawn, by the engine's folder."""
    seen: list[tuple[str, Job]] = []
    draw = Drawer.draw

    def noted(self: Drawer, job: Job) -> Drawn:
        seen.append((self.folder.name, job))
        return draw(self, job)

    monkeypatch.setattr(Drawer, "draw", noted)
    return seen


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the user interrupt when so many images have been drawn."""
    draw, left = Drawer.draw, [after]

    def stopping(self: Drawer, job: Job) -> Drawn:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return draw(self, job)

    monkeypatch.setattr(Drawer, "draw", stopping)


def flags(work: Path, out: Path | None, *more: str) -> list[str]:
    found = ["--engine", str(work / "one"), "--reference", str(work / "dense"), "--suite", "scene", "--limit", "1"]
    return [*found, "--warm-up", "0", *(["--out", str(out)] if out else []), *more]


def without_times(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    for engine in result["engines"]:
        del engine["latency_ms"], engine["speedup"]
    return result


def test_an_interrupted_evaluation_goes_on(
    work: Path,
    tmp_path: Path,
    drawn: list[tuple[str, Job]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Red before: the user was told that the same command goes on, and it began anew."""
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert evaluate(flags(work, whole)) == 0
    with monkeypatch.context() as stopped:
        interrupt(stopped, 7)
        assert evaluate(flags(work, out)) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not out.exists()
    partial = tmp_path / "out.json.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3
    # the last of them was cut off
    partial.write_bytes(b"".join(lines)[:-20])
    drawn.clear()
    assert evaluate(flags(work, out)) == 0
    assert [job.seed for name, job in drawn if name == "one"] == [2, 3, 4, 5]
    assert "out.json.partial: 2 images of each engine are there already" in capsys.readouterr().err
    assert without_times(out) == without_times(whole)
    assert len(json.loads(out.read_text())["engines"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "whole.json"]


def test_more_seeds_take_what_fewer_have_drawn(
    work: Path, tmp_path: Path, drawn: list[tuple[str, Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    with monkeypatch.context() as stopped:
        interrupt(stopped, 6)
        assert evaluate(flags(work, out)) == 130
    drawn.clear()
    assert evaluate(flags(work, out, "--seeds", "2")) == 0
    assert [job.seed for name, job in drawn if name == "dense"] == list(range(3, 12))
    assert json.loads(out.read_text())["engines"][1]["scene_eval"]["images"] == 12


def test_without_a_file_nothing_is_promised(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, 3)
    assert evaluate(flags(work, None)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == ("eval: interrupted; images are kept for the next run only with --out")


@pytest.mark.parametrize("content", ['{"format": 1, "engines": []}\n', "{}\n", "no JSON\n"])
def test_another_evaluations_images_are_left_alone(
    content: str, work: Path, tmp_path: Path, drawn: list[tuple[str, Job]], capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "out.json.partial"
    partial.write_text(content)
    assert evaluate(flags(work, tmp_path / "out.json")) == 2
    (last,) = capsys.readouterr().err.splitlines()[-1:]
    assert "out.json.partial: holds an unfinished evaluation of other engines" in last
    assert "give another --out" in last
    assert partial.read_text() == content
    assert not drawn


def test_a_broken_line_is_told(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "out.json.partial"
    with monkeypatch.context() as stopped:
        interrupt(stopped, 4)
        assert evaluate(flags(work, tmp_path / "out.json")) == 130
    lines = partial.read_text().splitlines()
    partial.write_text("\n".join([lines[0], lines[1].replace("seed", "sead"), ""]))
    assert evaluate(flags(work, tmp_path / "out.json")) == 2
    assert "out.json.partial: cannot be read as an unfinished evaluation" in capsys.readouterr().err


def test_a_folder_is_refused_before_anything_is_drawn(
    work: Path, tmp_path: Path, drawn: list[tuple[str, Job]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Red before: it was told when everything had been drawn."""
    assert evaluate(flags(work, tmp_path)) == 2
    assert f"--out {tmp_path}: is a folder; name a file" in capsys.readouterr().err
    assert not drawn


def test_engines_of_one_policy_are_told_apart(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red before: two lines of one name."""
    command = ["--engine", str(work / "one"), str(work / "two"), "--reference", str(work / "dense"), "--suite", "scene"]
    assert evaluate([*command, "--limit", "1", "--warm-up", "0"]) == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:5]]
    assert names == ["dense", str(work / "one"), str(work / "two")]
