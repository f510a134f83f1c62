"""The `auto` policy: trials equal whole runs, predictions add up, the front and the choice are right, searches resume."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_costs import made_table
from small_model import PROMPTS, small_model, small_profile, write_profile
from toprovar.calibrate.cli import main as calibrate
from toprovar.calibrate.search.actions import Change, Plan, build, grid, late_scales, layer_changes, reused_ends, token_changes
from toprovar.calibrate.search.policy import auto_schedule
from toprovar.calibrate.search.predict import Costs, frontier, thin
from toprovar.calibrate.search.price import Price
from toprovar.calibrate.search.search import TARGETS, Point, Search, front, near, spread_targets
from toprovar.calibrate.search.target import Target, choose
from toprovar.calibrate.search.trials import Fidelity, Trials, first_change
from toprovar.models.infinity import family
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.vae import to_uint8
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.plan import plan_scales, schedule_flops
from toprovar.profiles.schedule import Schedule
from toprovar.profiles.tables import milliseconds

PROFILE = small_profile()
COUNT = len(PROFILE.sizes)
SEEDED = [(prompt, 3 + i) for i, prompt in enumerate(PROMPTS[:2])]


def whole_run(schedule: Schedule, prompt: str, seed: int) -> np.ndarray:
    """The uint8 image of a schedule, every scale run."""
    model = small_model()
    text = model.text.encode_prompts([prompt])
    tokens = sum(h * w for h, w in PROFILE.sizes)
    noise = torch.from_numpy(image_noise(seed, tokens, PROFILE.transformer.token_bits))[None]
    summed = generate(build_steps(model.transformer, PROFILE, schedule), text.features, text.lengths, noise)
    with torch.inference_mode():
        return to_uint8(model.vae.decoder(summed))[0].numpy().astype(float)


def schedules() -> list[Schedule]:
    last = COUNT - 1
    plans = [
        Plan(COUNT, COUNT, {last: Change(0.5)}),
        Plan(COUNT, COUNT, {last: Change(0.25, "cache")}),
        Plan(COUNT, last, {last: Change(skipped=(1,))}),
        Plan(COUNT, last - 1, {last - 1: Change(0.5), last: Change(0.5)}),
        Plan(COUNT, last - 1, {last: Change(reused=(0,))}, reuse=True),
    ]
    fixed = [baseline(policy, PROFILE) for policy in ("skip-1", "noguide-2", "fastvar")]
    return [*(build(plan, PROFILE) for plan in plans), *fixed]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_trial_is_the_whole_run(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the scales from the first change on are run, from the state that the dense run left; a GPU takes fused steps."""
    if fused:
        monkeypatch.setattr(family, "ready_steps", lambda model, plans: family.fast_steps(model, plans, 1))
    trials = Trials(small_model(), SEEDED, "key")
    found = trials.measure([dense(PROFILE), *schedules()])
    assert found[0].squared_error == (0.0, 0.0)
    assert found[0].psnr_db == 99.0
    for schedule, fidelity in zip(schedules(), found[1:], strict=True):
        for (prompt, seed), error in zip(SEEDED, fidelity.squared_error, strict=True):
            difference = whole_run(schedule, prompt, seed) - whole_run(dense(PROFILE), prompt, seed)
            assert error == pytest.approx(float(np.mean(difference**2)), rel=1e-3)
            assert error > 0


def test_first_change() -> None:
    assert first_change(dense(PROFILE), dense(PROFILE)) == COUNT
    assert first_change(dense(PROFILE), baseline("skip-2", PROFILE)) == COUNT - 2


def test_trials_are_kept_and_those_of_another_model_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "trials.json"
    expected = Trials(small_model(), SEEDED, "key", store).measure(schedules()[:2])

    def refuse(*_: object) -> None:
        raise AssertionError("runs again")

    monkeypatch.setattr(Trials, "_run", refuse)
    assert Trials(small_model(), SEEDED, "key", store).measure(schedules()[:2]) == expected
    with pytest.raises(AssertionError, match="runs again"):
        Trials(small_model(), SEEDED, "another", store).measure(schedules()[:2])
    store.write_text("{")
    assert Trials(small_model(), SEEDED, "key", store).results == {}


def test_a_budget_leaves_out_what_would_take_longer(capsys: pytest.CaptureFixture[str]) -> None:
    trials = Trials(small_model(), SEEDED[:1], "key")
    search = Search(trials, Price(PROFILE), budget_s=1e-6)
    points = search.run()
    assert all(point.plan.is_product for point in points)
    assert not search.costs.layers
    assert search.costs.tokens
    told = capsys.readouterr().err
    assert "calibrate: single layers were run not at all, to keep within the budget" in told
    assert "calibrate: the budget ends the search after 0 rounds of combinations" in told


def test_combinations_that_the_state_cannot_hold_are_left_out() -> None:
    """The last scale takes updates of the one before all changes; a layer reused between writes a newer one."""
    first = COUNT - 3
    changes = {first: Change(skipped=(1,)), first + 1: Change(reused=(0,)), first + 2: Change(0.5, "cache")}
    contradicting = Plan(COUNT, COUNT, changes)
    with pytest.raises(ScheduleError, match="wrote a newer one"):
        plan_scales(build(contradicting, PROFILE))
    possible = Plan(COUNT, COUNT, {first: changes[first], first + 1: changes[first + 1]})
    search = Search(Trials(small_model(), SEEDED[:1], "key"), Price(PROFILE))
    search.costs = replace(synthetic_costs(), layers={scale: {0: 1.0, 1: 1.0} for scale in changes})
    assert [plan for plan, _ in search._measure([contradicting, possible], "combinations")] == [possible]


def test_actions_cover_products_tokens_and_layers() -> None:
    late = late_scales(PROFILE)
    assert late
    assert late[-1] == COUNT - 1
    plans = list(grid(PROFILE))
    assert plans[-1] == Plan(COUNT, COUNT)
    names = {build(plan, PROFILE).digest() for plan in plans}
    assert len(names) == len(plans)
    for policy in ("dense", "skip-1", "noguide-1"):
        assert baseline(policy, PROFILE).digest() in names
    assert {scale for scale, _ in token_changes(PROFILE)} == {scale for scale, _ in layer_changes(PROFILE)} == set(late)


def test_one_scale_can_be_pruned_and_lose_layers_at_once() -> None:
    schedule = build(Plan(COUNT, COUNT, {COUNT - 1: Change(0.5, "hold", (0,))}), PROFILE)
    rule = schedule.scales[-1]
    assert rule.skip_layers == (0,)
    assert rule.tokens is not None
    assert rule.tokens.kept[0] == round(0.5 * rule.count)
    assert schedule_flops(schedule, PROFILE) < 0.8 * schedule_flops(dense(PROFILE), PROFILE)


def synthetic_costs() -> Costs:
    ends = {plan.ends: float(COUNT - plan.runs) * 9 + float(COUNT - plan.guided) for plan in grid(PROFILE)}
    tokens = {scale: {} for scale in late_scales(PROFILE)}
    for scale, change in token_changes(PROFILE):
        tokens[scale][change] = (1 - change.share) * scale * (1.0 if change.fill == "hold" else 1.5)
    layers = {scale: {layer: 3.0 + layer for layer in range(2)} for scale in late_scales(PROFILE)}
    return Costs(ends=ends, tokens=tokens, layers=layers)


def test_frontier_is_not_dominated_and_predicts_by_parts() -> None:
    costs = synthetic_costs()
    points = frontier(costs, Price(PROFILE))
    flops, errors = [p[0] for p in points], [p[1] for p in points]
    assert flops == sorted(flops, reverse=True)
    assert errors == sorted(errors)
    assert points[0][1] == 0.0
    for _, error, plan in points:
        assert error == pytest.approx(costs.predict(plan))
    # hold is cheaper in this table, so nothing on the frontier caches
    assert {c.fill for _, _, plan in points for c in plan.changes.values() if c.share < 1} == {"hold"}


def test_factors_are_found_again() -> None:
    costs = synthetic_costs()
    plans = [plan for _, _, plan in frontier(costs, Price(PROFILE)) if plan.changes]
    true = replace_factors(costs, (0.8, 1.5, 1.0))
    costs.fit([(plan, true.predict(plan)) for plan in plans])
    assert costs.factors[0] == pytest.approx(0.8, abs=0.05)
    assert costs.factors[1] == pytest.approx(1.5, abs=0.1)


def replace_factors(costs: Costs, factors: tuple[float, float, float]) -> Costs:
    return replace(costs, factors=factors)


def test_thin_keeps_the_ends() -> None:
    points = [(float(100 - i), float(i), Plan(COUNT, COUNT)) for i in range(50)]
    kept = thin([*points, (100.0, 7.0, Plan(1, 1))], 10)
    assert len(kept) <= 10
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]


def point(speedup: float, error: float) -> Point:
    return Point(Plan(COUNT, COUNT), speedup, Fidelity((error,)), error)


def test_combinations_are_looked_for_wherever_there_may_be_some() -> None:
    assert spread_targets(17.1, None) == list(TARGETS)
    assert spread_targets(17.1, 1.3) == sorted([*TARGETS, 1.3])
    found = spread_targets(1.95, None)
    assert len(found) == len(TARGETS)
    assert found[-1] == pytest.approx(1.95)
    assert all(high / low == pytest.approx(1.95 ** (1 / len(TARGETS))) for low, high in itertools.pairwise([1.0, *found]))


def test_the_refined_part_of_the_front_follows_what_can_be_reached() -> None:
    assert near(2.0, 17.1) == pytest.approx((1.8, 2.8))
    low, high = near(1.24, 1.95)
    assert 1.2 < low < 1.24 < high < 1.36
    assert near(1.0, 1.0) == (1.0, 1.0)


def test_front_and_choice() -> None:
    points = [point(1.0, 0.0), point(2.0, 10.0), point(2.1, 9.0), point(3.0, 50.0), point(2.9, 60.0)]
    best = front(points)
    assert [p.speedup for p in best] == [1.0, 2.1, 3.0]
    assert choose(best, Target(speedup=2.0)).speedup == 2.1
    assert choose(best, Target(psnr_db=38.0)).speedup == 2.1
    with pytest.raises(ScheduleError, match=r"at most 3.00x at 31.1 dB; run again with --target-speedup 3.00"):
        choose(best, Target(speedup=4.0))
    with pytest.raises(ScheduleError, match=r"35 dB: the nearest .* has 31.1 dB at 3.00x"):
        choose(best[2:], Target(psnr_db=35.0))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schedule]:
    """A finished search: its folder, and what it chose."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, auto_schedule(small_model(), PROMPTS[:2], 0, folder, Target(speedup=1.6))


@pytest.fixture
def trials(searched: tuple[Path, Schedule], tmp_path: Path) -> Path:
    """A folder with the trials of that search, where another one goes on."""
    return Path(shutil.copytree(searched[0], tmp_path / "trials"))


def test_two_searches_choose_the_same(searched: tuple[Path, Schedule], tmp_path: Path) -> None:
    found = searched[1]
    assert auto_schedule(small_model(), PROMPTS[:2], 0, tmp_path, Target(speedup=1.6)) == found
    told = found.provenance["auto"]
    assert told["prompts"] == {"searched": 1, "held_out": 1}
    assert told["chosen"]["speedup"] >= 1.6
    assert told["chosen"]["psnr_db"] >= told["best_product"]["psnr_db"]


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="needs at least 2 prompts"):
        auto_schedule(small_model(), PROMPTS[:1], 1, tmp_path, Target(speedup=2))


def test_command(trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]))
    common = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--prompts", str(prompts)]
    out = trials
    assert calibrate([*common, "--policy", "auto", "--min-psnr", "20", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "on 1 held-out prompt\n" in text
    assert "The search" in (out / "report.html").read_text()
    schedule = Schedule.load(out / "schedule.yaml")
    assert schedule.policy == "auto"
    assert schedule.provenance["auto"]["chosen"]["psnr_db"] >= 20
    for options, message in (
        (["--policy", "toprovar", "--min-psnr", "30"], "--min-psnr is for --policy auto"),
        (["--policy", "auto", "--min-psnr", "0"], "--min-psnr must be more than 0"),
        (["--policy", "auto", "--budget-minutes", "0"], "--budget-minutes must be more than 0"),
        (["--policy", "auto", "--target-speedup", "900"], "the search found at most"),
    ):
        assert calibrate([*common, *options, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_latency_is_the_price_where_costs_are_given(trials: Path) -> None:
    """The chosen schedule keeps the target by the table, decoder and conditioning included, and the report says so."""
    costs = made_table()
    whole = costs.predict(dense(PROFILE))
    found = auto_schedule(small_model(), PROMPTS[:2], 0, trials, Target(latency_ms=0.75 * whole), None, costs)
    told = found.provenance["auto"]
    assert costs.predict(found) <= 0.75 * whole
    assert told["chosen"]["latency_ms"] == pytest.approx(costs.predict(found), abs=0.3)
    assert told["chosen"]["speedup"] == pytest.approx(whole / costs.predict(found), abs=1e-3)
    assert told["costs"]["dense_ms"] == pytest.approx(whole, abs=1e-3)
    by_speedup = auto_schedule(small_model(), PROMPTS[:2], 0, trials, Target(speedup=4 / 3), None, costs)
    assert by_speedup.digest() == found.digest()


def test_targets_that_cannot_be_met_name_the_nearest(trials: Path) -> None:
    costs, whole = made_table(), made_table().predict(dense(PROFILE))
    with pytest.raises(ScheduleError, match=r"conditioning \(3.00 ms\) and decoder \(20.0 ms\) alone take 23.0 ms on onnx"):
        auto_schedule(small_model(), PROMPTS[:2], 0, trials, Target(latency_ms=22), None, costs)
    with pytest.raises(ScheduleError, match=r"target latency 24 ms: .* run again with --target-latency-ms [\d.]+ or more"):
        auto_schedule(small_model(), PROMPTS[:2], 0, trials, Target(latency_ms=24), None, costs)
    fast = [point(2.0, 9.0)]
    assert choose(fast, Target(latency_ms=whole / 2), whole).speedup == 2.0
    with pytest.raises(ScheduleError, match=f"takes {milliseconds(whole / 2)} .2.00x. at 38.6 dB"):
        choose(fast, Target(latency_ms=whole / 2 - 1), whole)


def test_ssim_is_a_target(tmp_path: Path) -> None:
    found = auto_schedule(small_model(), PROMPTS[:2], 0, tmp_path, Target(ssim=0.9)).provenance["auto"]
    assert found["chosen"]["ssim"] >= 0.9
    values = [p["ssim"] for p in found["front"]]
    assert values == sorted(values, reverse=True)
    near = Point(Plan(COUNT, COUNT), 1.5, Fidelity((9.0,), (0.98777,)), 9.0)
    with pytest.raises(ScheduleError, match=r"SSIM 0.99: .* 0.9878 at 1.50x; run again with --min-ssim 0.987 or less"):
        choose([near], Target(ssim=0.99))


def test_fewer_dimensions_change_less(tmp_path: Path) -> None:
    """What a search may not touch stays dense in everything it ran."""
    trials = Trials(small_model(), SEEDED[:1], "key", tmp_path / "trials.json")
    for name, kept in {"guidance": lambda p: p.runs == COUNT and not p.changes, "token": lambda p: p.runs == p.guided}.items():
        search = Search(trials, Price(PROFILE), dimensions=frozenset((name,)))
        search.run()
        plans = [p.plan for p in search.points.values()]
        assert len(plans) > 2
        assert all(kept(plan) for plan in plans)
        assert not any(change.skipped for plan in plans for change in plan.changes.values())


def test_latency_flags(trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, costs = tmp_path / "prompts.txt", tmp_path / "costs.json"
    prompts.write_text("\n".join(PROMPTS[:2]))
    made_table().save(costs)
    common = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--prompts", str(prompts)]
    common += ["--out", str(trials)]
    whole = made_table().predict(dense(PROFILE))
    auto = [*common, "--policy", "auto", "--costs", str(costs)]
    assert calibrate([*auto, "--target-latency-ms", f"{0.8 * whole:.1f}"]) == 0
    assert "ms predicted" in capsys.readouterr().out
    assert "Speed is latency, predicted" in (trials / "report.html").read_text()
    other = replace(made_table(), model="tiny")
    other.save(tmp_path / "other.json")
    for options, message in (
        ([*common, "--policy", "auto", "--target-latency-ms", "9"], "--target-latency-ms needs --costs"),
        ([*common, "--policy", "skip-1", "--costs", str(costs)], "--costs is for --policy auto"),
        ([*common, "--policy", "auto", "--min-ssim", "1"], "--min-ssim must be between 0 and 1"),
        ([*common, "--policy", "auto", "--costs", "none.json"], "no such cost table"),
        ([*common, "--policy", "auto", "--costs", str(tmp_path / "other.json")], "is of model tiny"),
    ):
        assert calibrate(options) == 2
        assert message in capsys.readouterr().err


def test_reused_ends_are_no_products_and_layers_take_the_cheaper_way() -> None:
    assert all(plan.is_product for plan in grid(PROFILE))
    ends = list(reused_ends(PROFILE))
    assert ends
    assert not any(plan.is_product for plan in ends)
    assert all(plan.guided < plan.runs for plan in ends)
    last = COUNT - 1
    costs = Costs(layers={last: {0: 1.0, 1: 2.0}}, reused={last: {1}})
    change = costs.change(Change(0.5), last, (0, 1))
    assert change == Change(0.5, "hold", (0,), (1,))
    rule = build(Plan(COUNT, last, {last: Change(reused=(1,))}, reuse=True), PROFILE).scales[last]
    assert rule.guidance_reuse
    assert rule.reuse_layers == (1,)
