"""`toprovar sweep`: which policies, where they stand, what is written, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_model import small_profile
from small_var import write_var_profile
from toprovar.benchmarks.sweep.cli import main as sweep
from toprovar.benchmarks.sweep.front import front, margins
from toprovar.benchmarks.sweep.policies import check_policies, default_policies, family
from toprovar.profiles.baselines import baseline
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.model import load_profile
from toprovar.profiles.schedule import Schedule


def record(policy: str, speed: float, psnr: float | None, scene: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"policy": policy, "flops_speedup": speed, "speedup": speed, "psnr_db": psnr}
    return found | ({"scene_eval": {"accuracy": scene}} if scene is not None else {})


def test_every_policy_of_the_range_is_there_once() -> None:
    profile = load_profile("tiny")
    names = default_policies(profile)
    assert {"dense", "skip-4", "noguide-5", "skip-1+noguide-3", "fastvar", "skipvar", "toprovar@2", "auto@3.4"} <= set(names)
    fixed = [name for name in names if "@" not in name]
    assert len({baseline(name, profile).digest() for name in fixed}) == len(fixed)
    check_policies(names, profile)
    assert not [n for n in default_policies(profile.with_options(cfg=1.0)) if "noguide" in n]
    assert [family(n) for n in ("skip-2", "skip-1+noguide-3", "auto@2", "dense")] == [
        "skip-N",
        "skip-N+noguide-M",
        "auto",
        "dense",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auto@1", "give a speed-up of more than 1, as auto@2"),
        ("auto", "give a speed-up"),
        ("skip-2+noguide-2", "the last 2 scales do not run; noguide-M needs M of more than 2"),
        ("skip-1+noguide-99", "N must be 1 to"),
        ("skop-1", "is not known"),
    ],
)
def test_wrong_names_are_told(name: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check_policies([name], small_profile())


def test_product_is_both_of_its_factors() -> None:
    profile = small_profile()
    product, count = baseline("skip-1+noguide-3", profile), len(profile.sizes)
    assert [rule.run for rule in product.scales] == [True] * (count - 1) + [False]
    assert [rule.guidance for rule in product.scales] == [True] * (count - 3) + [False] * 3


def test_margin_is_to_the_line_between_the_best_of_the_others() -> None:
    others = [
        record("skip-1", 2.0, 34.0),
        record("skip-2", 4.0, 30.0),
        record("noguide-5", 2.0, 31.0),
        record("dense", 1, None),
    ]
    own = [record("auto@2", 2 * math.sqrt(2), 33.5), record("auto@1.2", 1.3, 44.0), record("auto@9", 9.0, 20.0)]
    assert front([*others, *own[:1]], "speedup", "psnr_db") == [(2.0, 34.0), (pytest.approx(2.83, abs=0.01), 33.5), (4.0, 30.0)]
    assert margins([*others, *own], "speedup") == [{"policy": "auto@2", "speedup": 2 * math.sqrt(2), "margin": 1.5}]
    assert front([record("a", 2.0, 30.0, 0.8)], "speedup", "scene_eval") == [(2.0, 0.8)]


def test_sweep_writes_everything_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("3\n7\n")
    # few scales: exporting them is what takes the time
    profile = write_var_profile(tmp_path / "small.yaml", patch_nums=(1, 2, 4))
    out, model = tmp_path / "out", ["--model", str(profile), "--weights", "random"]
    command = [*model, "--prompts", str(tmp_path / "prompts.txt"), "--calibration-prompts", str(tmp_path / "prompts.txt")]
    command += ["--policies", "skip-1", "auto@1.5", "--timed", "1", "--warm-up", "0", "--out", str(out)]
    assert sweep([*command[:-2], "--out", str(out)]) == 0
    with (out / "sweep.csv").open() as file:
        lines = {line["policy"]: line for line in csv.DictReader(file)}
    assert set(lines) == {"dense", "skip-1", "auto@1.5"}
    assert lines["dense"]["psnr_db"] == ""
    assert float(lines["skip-1"]["psnr_db"]) > 5
    assert float(lines["auto@1.5"]["flops_speedup"]) >= 1.5
    # random weights follow the calibration's seed in every engine; compared with those of another seed it would be 8 dB
    assert float(lines["auto@1.5"]["psnr_db"]) > 15
    assert float(lines["skip-1"]["latency_min_ms"]) <= float(lines["skip-1"]["latency_ms"])
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert "auto over the best of all others" in page
    assert (out / "sweep.png").stat().st_size > 10_000
    assert sorted(path.parent.name for path in out.glob("policies/*/engine")) == ["dense"]
    before = json.loads((out / "sweep.json").read_text())

    def refuse(*_: object) -> None:
        raise AssertionError("runs again")

    monkeypatch.setattr("toprovar.benchmarks.sweep.policies.build_engine", refuse)
    assert sweep(command) == 0
    assert json.loads((out / "sweep.json").read_text()) == before
    with pytest.raises(AssertionError, match="runs again"):
        sweep([*command, "--seed", "4"])
    capsys.readouterr()
    assert sweep([*model, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out)]) == 2
    assert "toprovar@1.5 needs --calibration-prompts, or --schedules of an earlier sweep" in capsys.readouterr().err


def test_calibrated_schedules_of_another_sweep_are_measured_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("3\n")
    profile = load_profile(str(write_var_profile(tmp_path / "small.yaml", patch_nums=(1, 2, 4))))
    ready = tmp_path / "earlier" / "policies" / "auto@2" / "schedule.yaml"
    ready.parent.mkdir(parents=True)
    baseline("skip-1", profile).save(ready)

    def refuse(*_: object) -> None:
        raise AssertionError("calibrates again")

    monkeypatch.setattr("toprovar.benchmarks.sweep.policies.calibrate", refuse)
    command = ["--model", str(tmp_path / "small.yaml"), "--weights", "random", "--prompts", str(tmp_path / "prompts.txt")]
    command += ["--schedules", str(tmp_path / "earlier"), "--timed", "1", "--warm-up", "0", "--out", str(tmp_path / "out")]
    assert sweep([*command, "--policies", "auto@2"]) == 0
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())["policies"][1]
    assert record["schedule_sha256"] == Schedule.load(ready).digest()
    capsys.readouterr()
    assert sweep([*command, "--policies", "auto@3"]) == 2
    assert "has no schedule of auto@3" in capsys.readouterr().err
