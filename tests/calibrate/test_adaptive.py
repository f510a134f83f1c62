"""Rungs picked per image: the fit finds a rule that was put there, schedules draw as their rungs, the check tells the truth."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_costs import made_table
from small_model import PROMPTS as ALL_PROMPTS
from small_model import small_model, small_profile, write_profile
from small_rungs import text_and_noise
from toprovar.calibrate.cli import main as calibrate
from toprovar.calibrate.search.actions import Plan, build
from toprovar.calibrate.search.adaptive import Rule, _fitted, blind, fit
from toprovar.calibrate.search.policy import auto_schedule
from toprovar.calibrate.search.price import Price
from toprovar.calibrate.search.search import Point
from toprovar.calibrate.search.target import Target
from toprovar.calibrate.search.trials import Fidelity, Trials
from toprovar.models.generate import image_noise
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import CostError, ScheduleError
from toprovar.profiles.schedule import Schedule
from toprovar.profiles.tables import flops_speedups, schedule_table

PROMPTS = ALL_PROMPTS[:5]
PROFILE = small_profile()
COUNT = len(PROFILE.sizes)
SEEDED = [(prompt, i) for i, prompt in enumerate(PROMPTS)]


def point(speedup: float, errors: list[float]) -> Point:
    return Point(Plan(COUNT, COUNT), speedup, Fidelity(tuple(errors)), 0.0)


def test_a_rule_that_is_there_is_found() -> None:
    """Images of a high value lose much in the fast candidate, those of a low one nothing: the limit lies between them."""
    values = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.3])
    lost = np.array([[1.0] * 6, [90.0, 2.0, 90.0, 2.0, 90.0, 2.0]])
    points = (point(1.0, list(lost[0])), point(4.0, list(lost[1])))
    prices = np.array([1.0, 0.25])
    (rule,) = _fitted(Rule(3, 1, (), points, 0, 0), values, prices, lost, True, 0.625)
    assert rule.limits == (0.5,)
    assert (rule.price, rule.loss) == (0.625, 1.5)
    assert rule.names == ("fast", "quality")
    assert rule.decision.pick(np.array([[9, 0.4, 9], [9, 0.6, 9]])) == ("fast", "quality")
    (near,) = _fitted(Rule(3, 1, (), points, 0, 0), values, prices, lost, False, 1.5)
    assert near.limits == (0.5,)
    assert not list(_fitted(Rule(3, 1, (), points, 0, 0), values, prices, lost, True, 0.2))
    assert not list(_fitted(Rule(3, 1, (), points, 0, 0), np.ones(6), prices, lost, True, 0.9))


def test_the_rival_is_the_best_blind_mixture() -> None:
    points = [point(1.0, [0.0, 0.0]), point(2.0, [30.0, 10.0]), point(4.0, [40.0, 40.0])]
    assert [(p.speedup, share) for p, share in blind(points, 0.75, 1.0, False)] == [(1.0, 0.5), (2.0, 0.5)]
    assert [(p.speedup, share) for p, share in blind(points, 0.25, 1.0, False)] == [(4.0, 1.0)]


def test_picking_is_paid_for() -> None:
    """Two schedules of 100 and 50 units, an even share of each: what picking takes comes on top, and must leave room."""
    whole, price = 100.0, Price(PROFILE, made_table())
    fast = replace(point(2.0, [9.0, 9.0, 1.0, 1.0]), plan=Plan(COUNT - 1, COUNT - 1))
    points = {entry.plan.key(): entry for entry in (point(1.0, [0.0] * 4), fast)}
    search = SimpleNamespace(profile=PROFILE, price=price, whole=whole, points=points)
    search.schedule, search.trials = (lambda plan: build(plan, PROFILE)), SimpleNamespace(with_ssim=False)
    trials = SimpleNamespace(with_ssim=False, prompts=[""] * 4, features=lambda scale: np.arange(4.0)[:, None].repeat(3, 1))
    rule = fit(trials, search, Target(speedup=whole / 80), points[Plan(COUNT, COUNT).key()])  # type: ignore[arg-type]
    picking = price.picking(rule.scale)
    assert 2.0 <= picking <= 3.0
    assert rule.price == 75.0 + picking
    with pytest.raises(ScheduleError, match="no two schedules"):
        fit(trials, search, Target(speedup=whole / 51), points[Plan(COUNT, COUNT).key()])  # type: ignore[arg-type]
    assert Price(PROFILE).picking(rule.scale) == 0.0


def test_a_table_without_picking_is_refused_before_the_search(tmp_path: Path) -> None:
    costs = replace(made_table(), decisions=())
    with pytest.raises(CostError, match="picking a rung by entropy was not measured"):
        auto_schedule(small_model(), PROMPTS, 0, tmp_path, Target(speedup=1.6), costs=costs, adaptive=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Schedule, Path]:
    folder = tmp_path_factory.mktemp("adaptive")
    return auto_schedule(small_model(), PROMPTS, 0, folder, Target(speedup=1.6), adaptive=True), folder


def test_the_mean_meets_the_target_and_the_record_is_true(found: tuple[Schedule, Path]) -> None:
    schedule, _ = found
    told = schedule.provenance["auto"]["adaptive"]
    assert [rung.name for rung in schedule.rungs] == [r["name"] for r in told["rungs"]]
    assert told["searched"]["speedup"] >= 1.6
    assert told["searched"]["prompts"] + told["held_out"]["prompts"] == len(PROMPTS)
    assert [r["speedup"] for r in told["rungs"]] == pytest.approx(flops_speedups(schedule, PROFILE), abs=1e-3)
    assert dense(PROFILE).scales[: schedule.decision.scale + 1] == schedule.scales[: schedule.decision.scale + 1]
    assert "x to " in schedule_table(schedule, PROFILE).splitlines()[0]
    # what trials foretold is what the schedule draws, image by image
    model, trials = small_model(), Trials(small_model(), SEEDED, "key")
    searched = [i for i in range(len(PROMPTS)) if i != 3]
    text, lengths, _ = text_and_noise(PROFILE, list(range(len(PROMPTS))))
    noise = image_noise(PROFILE, [seed for _, seed in SEEDED])
    _, picked = generate_rungs(build_rungs(model, schedule), text, lengths, noise)
    told_rungs = {False: [], True: []}
    for image in told["images"]:
        told_rungs[image["held_out"]].append(image)
    assert [image["rung"] for image in told_rungs[False]] == [picked[i] for i in searched]
    by_name = {rung.name: path for rung, path in zip(schedule.rungs, schedule.paths, strict=True)}
    errors = {name: fidelity.squared_error for name, fidelity in zip(by_name, trials.measure(by_name.values()), strict=True)}
    expected = [errors[picked[i]][i] for i in searched]
    assert [image["loss"] for image in told_rungs[False]] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_search_resumes_with_its_features(found: tuple[Schedule, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, folder = found

    def refuse(*_: object) -> None:
        raise AssertionError("runs again")

    monkeypatch.setattr(Trials, "dense_states", refuse)
    assert auto_schedule(small_model(), PROMPTS, 0, folder, Target(speedup=1.6), adaptive=True) == schedule


def test_fidelity_is_a_target_and_too_much_is_refused(found: tuple[Schedule, Path]) -> None:
    _, folder = found
    schedule = auto_schedule(small_model(), PROMPTS, 0, folder, Target(psnr_db=25.0), adaptive=True)
    assert schedule.provenance["auto"]["adaptive"]["searched"]["fidelity"] >= 25
    # of the fastest there is no pair: nothing is faster, and all else is slower than asked
    most = schedule.provenance["auto"]["front"][-1]["speedup"] - 0.01
    with pytest.raises(ScheduleError, match=r"no two schedules .* meet the target on 4 prompts"):
        auto_schedule(small_model(), PROMPTS, 0, folder, Target(speedup=most), adaptive=True)
    with pytest.raises(ScheduleError, match="--adaptive needs at least 4 prompts"):
        auto_schedule(small_model(), PROMPTS[:3], 0, folder, Target(speedup=1.6), adaptive=True)


def test_command(found: tuple[Schedule, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    # the trials of the search above are found again: the same prompts, seeds and weights
    shutil.copytree(found[1], out)
    prompts.write_text("\n".join(PROMPTS))
    common = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--prompts", str(prompts)]
    common += ["--out", str(out), "--adaptive"]
    assert calibrate([*common, "--policy", "auto", "--target-speedup", "1.6"]) == 0
    text = capsys.readouterr().out
    assert "of the entropy after scale" in text
    # one held-out prompt proves nothing
    assert "run again without --adaptive" in text
    page = (out / "report.html").read_text()
    assert "Rungs" in page
    assert "share of held-out prompts" in page
    schedule = Schedule.load(out / "schedule.yaml")
    least, most = schedule.provenance["flops_speedup"]
    assert least < most
    assert calibrate([*common, "--policy", "toprovar"]) == 2
    assert "--adaptive is for --policy auto" in capsys.readouterr().err
