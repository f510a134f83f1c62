"""Steps from combinations that were run: each changes one thing, and those that should gain most come first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_model import PROMPTS, small_model, small_profile
from toprovar.calibrate.search import search as searching
from toprovar.calibrate.search.actions import Change, Plan, build, grid, late_scales, layer_changes, reused_ends, token_changes
from toprovar.calibrate.search.predict import Costs
from toprovar.calibrate.search.price import Price
from toprovar.calibrate.search.refine import neighbours, promising
from toprovar.calibrate.search.search import Search
from toprovar.calibrate.search.trials import Trials
from toprovar.profiles.baselines import dense

PROFILE = small_profile()
COUNT, LAST = len(PROFILE.sizes), len(PROFILE.sizes) - 1
PRICE = Price(PROFILE)
WHOLE = PRICE.schedule(dense(PROFILE))


def costs() -> Costs:
    """Made up: every part of a plan costs something."""
    ends = {p.ends: 9.0 * (COUNT - p.runs) + (COUNT - p.guided) + p.reuse for p in (*grid(PROFILE), *reused_ends(PROFILE))}
    tokens: dict[int, dict[Change, float]] = {scale: {} for scale in late_scales(PROFILE)}
    for scale, change in token_changes(PROFILE):
        tokens[scale][change] = (1 - change.share) * scale
    layers = {scale: {0: 3.0, 1: 4.0} for scale, _ in layer_changes(PROFILE)}
    return Costs(ends=ends, tokens=tokens, layers=layers, reused={LAST: {1}})


STARTS = [
    Plan(COUNT, COUNT),
    Plan(COUNT, LAST, {LAST: Change(0.5)}, reuse=True),
    Plan(LAST, LAST - 2, {LAST - 1: Change(0.75, "cache", (0,))}),
    Plan(COUNT, COUNT, {LAST: Change(reused=(1,)), LAST - 1: Change(0.15)}),
]


def speedup(plan: Plan) -> float:
    return WHOLE / PRICE.schedule(build(plan, PROFILE))


def steps(plan: Plan, other: Plan) -> Iterator[str]:
    """What differs, by kind."""
    ends = {"runs": (plan.runs, other.runs), "guided": (min(plan.guided, plan.runs), min(other.guided, other.runs))}
    moved = [name for name, (here, there) in ends.items() if here != there]
    yield from moved
    yield from ("reuse" for _ in range(not moved and plan.reuse != other.reuse))
    for scale in range(min(plan.runs, other.runs)):
        here, there = plan.changes.get(scale, Change()), other.changes.get(scale, Change())
        yield from ("layers" for _ in range(len(set(here.idle) ^ set(there.idle))))
        yield from ("share" for _ in range(here.share != there.share))


@pytest.mark.parametrize("plan", STARTS, ids=str)
def test_a_neighbour_is_one_step_away_and_its_parts_are_known(plan: Plan) -> None:
    found = list(neighbours(plan, costs(), PROFILE))
    assert {kind for other in found for kind in steps(plan, other)} >= {"guided", "share", "layers"}
    for other in found:
        assert other.key() != plan.key()
        # with the last scale the guidance that only it had goes too
        assert len(set(steps(plan, other))) == 1 or (other.runs, other.guided) == (plan.runs - 1, COUNT)
        assert costs().predict(other) >= 0
        assert build(other, PROFILE).layers == PROFILE.transformer.depth


def test_neighbours_keep_one_fill() -> None:
    for other in neighbours(STARTS[2], costs(), PROFILE):
        assert {change.fill for change in other.changes.values() if change.share < 1} <= {"cache"}


def test_what_was_run_and_was_better_than_predicted_is_gone_on_from() -> None:
    """Of two points the second lost a tenth of what was predicted: the neighbour that should gain most is its own."""
    one, two = STARTS[1], STARTS[3]
    measured = ((one, 50.0), (two, 0.1 * costs().predict(two)))
    runs = sorted(((plan, speedup(plan), error) for plan, error in measured), key=lambda run: run[1])
    known = {plan.key(): None for plan, _, _ in runs}
    found = promising(runs, known, costs(), PRICE, WHOLE, 4)
    assert 0 < len(found) <= 4
    assert not {plan.key() for plan in found} & known.keys()
    assert found[0].key() in {plan.key() for plan in neighbours(two, costs(), PROFILE)}


def test_refined_search_only_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it ran without refinement it runs with it, so its front is nowhere worse."""
    trials = Trials(small_model(), [(PROMPTS[0], 3)], "key")
    monkeypatch.setattr(searching, "REFINEMENTS", 0)
    plain = Search(trials, PRICE)
    before = plain.run()
    monkeypatch.setattr(searching, "REFINEMENTS", 2)
    monkeypatch.setattr(searching, "NEIGHBOURS", 12)
    refined = Search(trials, PRICE)
    after = refined.run()
    assert plain.points.keys() < refined.points.keys()
    for point in before:
        assert any(p.speedup >= point.speedup and p.fidelity.mse <= point.fidelity.mse for p in after)
    assert len(refined.points) - len(plain.points) <= 2 * searching.NEIGHBOURS
