"""FastVAR's rule: to the letter at 1024 x 1024, by shares elsewhere, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_model import small_profile
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.geometry import budgets, templates
from toprovar.profiles.model import load_profile
from toprovar.profiles.plan import plan_scales, scale_flops, schedule_flops
from toprovar.profiles.schedule import Schedule, TokenRule


def summary(schedule: Schedule) -> tuple[list[int], dict[int, int], set[int | None]]:
    """Scales that are not run, tokens kept by scale, cache scales."""
    pruned = [rule for rule in schedule.scales if rule.tokens is not None]
    kept = {rule.scale: min(rule.tokens.kept) for rule in pruned if rule.tokens is not None}
    return [r.scale for r in schedule.scales if not r.run], kept, {r.tokens.cache_scale for r in pruned if r.tokens}


@pytest.mark.parametrize("policy", ["fastvar", "fastvar-official"])
def test_infinity_2b_is_the_released_rule(policy: str) -> None:
    """1024 x 1024: 48 and 64 not run, 615 of 1024 and 800 of 1600 kept in layers 3 to 27, restored from 24 x 24."""
    profile = load_profile("infinity-2b")
    schedule = baseline(policy, profile)
    assert summary(schedule) == ([11, 12], {9: 615, 10: 800}, {8})
    assert [profile.sizes[i] for i in (8, 9, 10, 11, 12)] == [(24, 24), (32, 32), (40, 40), (48, 48), (64, 64)]
    for plan in plan_scales(schedule)[9:]:
        assert plan.branch_layers == tuple(range(3, 28))
        assert set(plan.kept) == {615, 1024} or set(plan.kept) == {800, 1600}
    assert plan_scales(schedule)[8].writes_branches == tuple(range(3, 28))


def test_both_rules_are_one_at_depth_32() -> None:
    profile = load_profile("infinity-2b")
    assert baseline("fastvar", profile).digest() == baseline("fastvar-official", profile).digest()


@pytest.mark.parametrize("ratio", templates())
def test_every_template_gets_the_square_rule(ratio: float) -> None:
    """At 1M each template has 13 scales: the same ones are pruned, by the same share, as in the square."""
    profile = replace(load_profile("infinity-2b"), aspect_ratio=ratio)
    schedule = baseline("fastvar", profile)
    counts = [h * w for h, w in profile.sizes]
    expected = {9: counts[9] - int(counts[9] * 0.4), 10: counts[10] - int(counts[10] * 0.5)}
    assert summary(schedule) == ([11, 12], expected, {8})


@pytest.mark.parametrize("budget", budgets())
@pytest.mark.parametrize("ratio", templates())
def test_every_budget_is_restored_from_a_whole_scale(ratio: float, budget: str) -> None:
    profile = replace(load_profile("tiny"), aspect_ratio=ratio, pixel_budget=budget)
    skipped, kept, cache = summary(baseline("fastvar", profile))
    first = min(*kept, *skipped)
    # the coarsest budget of 1.5 and 0.666 jumps from 0.43 to 0.71 of the last side: nothing between to prune
    assert cache == ({first - 1} if kept else set())
    assert bool(kept) == ((ratio, budget) not in {(1.5, "0.06M"), (0.666, "0.06M")})
    assert sorted([*kept, *skipped]) == list(range(first, len(profile.sizes)))
    assert len(profile.sizes) - 1 in skipped


def test_tiny_model() -> None:
    """10 scales up to 32, 8 layers: the shares of 64 and of 32 layers."""
    schedule = baseline("fastvar", load_profile("tiny"))
    assert summary(schedule) == ([8, 9], {6: 154, 7: 200}, {5})
    assert plan_scales(schedule)[-1].branch_layers == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("0.06M", ([], {}, set())),
        ("0.25M", ([], {9: 615}, {8})),
        ("0.60M", ([11], {9: 615, 10: 800}, {8})),
    ],
)
def test_official_rule_goes_by_width_at_every_budget(budget: str, expected: object) -> None:
    profile = replace(load_profile("infinity-2b"), pixel_budget=budget)
    assert summary(baseline("fastvar-official", profile)) == expected


def test_official_rule_is_refused_where_it_is_not_defined() -> None:
    with pytest.raises(ScheduleError, match="written for square images, got scales up to 70 x 56; use fastvar"):
        baseline("fastvar-official", replace(load_profile("infinity-2b"), aspect_ratio=1.25))


def test_flops_by_hand() -> None:
    """All three branches of a pruned layer run on the kept tokens; every token emits bits; only kept keys are seen later."""
    profile = load_profile("infinity-2b")
    config, width = profile.transformer, profile.transformer.width
    plan = plan_scales(baseline("fastvar", profile))[10]
    before, size = 1497, 1600
    pruned_keys, whole_keys = before + 615 + 800, before + 1024 + size
    linear = 2 * width * (4 * width + 2 * width + 2 * 4 * width)
    pruned = 800 * (linear + 4 * width * pruned_keys + 4 * width * 40)
    whole = size * (linear + 4 * width * whole_keys + 4 * width * 40)
    emit = size * (4 * width * config.token_bits + 2 * width * config.token_bits)
    assert scale_flops(plan, profile) == 2 * (25 * pruned + 7 * whole + emit)


def test_speedup_is_that_of_few_tokens() -> None:
    """Without the scales of 48 and 64 Infinity-2B runs 39 % of its tokens, a quarter of its FLOPs."""
    profile = load_profile("infinity-2b")
    speedup = schedule_flops(dense(profile), profile) / schedule_flops(baseline("fastvar", profile), profile)
    skipped = schedule_flops(dense(profile), profile) / schedule_flops(baseline("skip-2", profile), profile)
    assert skipped < speedup < 2 * skipped


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"score": "distance"}, "score 'distance' looks at what enters a branch: use fill 'branch', got 'hold'"),
        ({"fill": "branch"}, "cache_scale belongs to the fills"),
        ({"score": "distance", "fill": "cache", "cache_scale": 3}, "use fill 'branch', got 'cache'"),
    ],
)
def test_rules_that_contradict_themselves(tokens: dict[str, object], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        TokenRule(kept=(9, 9), **tokens)  # type: ignore[arg-type]


def test_branches_need_a_whole_cache_scale() -> None:
    base = dense(small_profile())
    rules = list(base.scales)
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(9, 9), score="distance", fill="branch", cache_scale=4))
    rules[6] = replace(rules[6], tokens=TokenRule(kept=(9, 9), score="distance", fill="branch", cache_scale=5))
    with pytest.raises(ScheduleError, match=r"cache_scale 5 must run layers \[0, 1\] with all of its tokens"):
        replace(base, scales=tuple(rules))


def test_an_overwritten_cache_is_refused() -> None:
    """The state holds one update a layer: scale 6 would read scale 4's, which scale 5 reads, instead of scale 3's."""
    base = dense(small_profile())
    rules = list(base.scales)
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(9, 9), fill="cache", cache_scale=4))
    rules[6] = replace(rules[6], tokens=TokenRule(kept=(9, 9), fill="cache", cache_scale=3))
    schedule = replace(base, scales=tuple(rules))
    with pytest.raises(ScheduleError, match="scale 6: reads layer 0 of scale 3, but scale 4 wrote a newer one"):
        plan_scales(schedule)
