"""The toprovar policy: targets met, and every constant doing what the equations say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_measurements import IMAGES, synthetic_measurements
from toprovar.calibrate.policy import GAPS, representative_scale, toprovar_schedule
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import MeasurementError, ScheduleError
from toprovar.profiles.model import ModelProfile, load_profile
from toprovar.profiles.plan import schedule_flops
from toprovar.profiles.schedule import Schedule

TARGETS = (1.0, 1.05, 1.3, 1.6, 2.0, 3.0, 6.0, 20.0)


@pytest.fixture(scope="module")
def tiny() -> ModelProfile:
    return load_profile("tiny")


def speedup(schedule: Schedule, profile: ModelProfile) -> float:
    return schedule_flops(dense(profile), profile) / schedule_flops(schedule, profile)


def kept_tokens(schedule: Schedule) -> int:
    return sum(sum(r.tokens.kept) if r.tokens else r.count * schedule.layers for r in schedule.scales)


@pytest.mark.parametrize("slope", [-0.02, 0.02], ids=["rho-falls", "rho-rises"])
@pytest.mark.parametrize("target", [1.3, 1.6, 2.0, 3.0, 20.0])
def test_target_is_met_within_one_percent(tiny, target, slope):
    schedule = toprovar_schedule(synthetic_measurements(tiny, rho_slope=slope), tiny, target)
    assert target <= speedup(schedule, tiny) <= 1.01 * target
    assert schedule.provenance["flops_speedup"] == pytest.approx(speedup(schedule, tiny), abs=1e-4)


def test_schedule_survives_yaml_and_fits_the_model(tiny, tmp_path):
    schedule = toprovar_schedule(synthetic_measurements(tiny), tiny, 1.6)
    schedule.save(tmp_path / "schedule.yaml")
    assert Schedule.load(tmp_path / "schedule.yaml") == schedule
    schedule.check_model(tiny)


def test_same_measurements_give_the_same_schedule(tiny):
    one, other = (toprovar_schedule(synthetic_measurements(tiny), tiny, 1.6) for _ in range(2))
    assert one == other


def test_target_of_one_removes_nothing(tiny):
    schedule = toprovar_schedule(synthetic_measurements(tiny), tiny, 1.0)
    assert schedule.removes_nothing
    assert replace(schedule, entropy_layer=dense(tiny).entropy_layer).digest() == dense(tiny).digest()


def test_target_just_above_one_removes_next_to_nothing(tiny):
    schedule = toprovar_schedule(synthetic_measurements(tiny), tiny, 1.001)
    assert kept_tokens(schedule) > 0.995 * kept_tokens(dense(tiny))


def test_higher_targets_keep_fewer_tokens_and_start_no_later(tiny):
    measurements = synthetic_measurements(tiny)
    schedules = [toprovar_schedule(measurements, tiny, target) for target in TARGETS]
    kept = [kept_tokens(schedule) for schedule in schedules]
    first = [schedule.provenance["toprovar"]["first_pruned_scale"] for schedule in schedules]
    assert kept == sorted(kept, reverse=True)
    assert first == sorted(first, reverse=True)
    assert first[0] == len(tiny.sizes) - 1
    assert first[-1] < first[0]


def test_layers_of_sharper_maps_keep_more(tiny):
    """Equation (4): a high ratio is a Global layer, score near 0, and keeps its tokens."""
    rule = toprovar_schedule(synthetic_measurements(tiny), tiny, 1.5).scales[-1]
    assert list(rule.tokens.kept) == sorted(rule.tokens.kept)
    assert rule.tokens.kept[0] < rule.tokens.kept[-1]


def test_counts_follow_equation_six(tiny):
    """With alpha from the provenance, each layer keeps round(sum of 1 - clip(alpha s/S R Hn, 0, 1)), Hn of mean 1."""
    measurements = synthetic_measurements(tiny)
    schedule = toprovar_schedule(measurements, tiny, 2.5)
    found, last = schedule.provenance["toprovar"], len(tiny.sizes) - 1
    ratio = 1.2 + np.arange(tiny.transformer.depth) / 4
    score = np.exp(-np.log(2) / (np.median(ratio) - 1) * (ratio - 1))
    np.testing.assert_allclose(found["score"], score, atol=1e-4)
    entropy = measurements.mean_entropy(last).mean(axis=1)
    tendency = score[:, None] * entropy / entropy.mean(axis=1, keepdims=True)
    expected = (1 - np.clip(found["alpha_max"] * tendency, 0, 1)).sum(axis=1)
    np.testing.assert_allclose(schedule.scales[last].tokens.kept, np.maximum(expected, 1), atol=0.6)


def test_median_layer_scores_one_half(tiny):
    measurements = synthetic_measurements(tiny)
    ratios = np.array([1.1, 1.2, 1.3, 1.7, 1.7, 2.0, 3.0, 9.0])
    for scale in range(len(tiny.sizes)):
        measurements.sums[f"ratio.sum.{scale}"][:, 1] = IMAGES * ratios
    score = toprovar_schedule(measurements, tiny, 1.3).provenance["toprovar"]["score"]
    assert score[3] == score[4] == pytest.approx(0.5)
    assert score == sorted(score, reverse=True)


@pytest.mark.parametrize(("slope", "side"), [(0.02, ">="), (-0.02, "<=")])
def test_tau_singles_out_the_first_pruned_scale(tiny, slope, side):
    found = toprovar_schedule(synthetic_measurements(tiny, rho_slope=slope), tiny, 2.6).provenance["toprovar"]
    crossed = [rho >= found["tau"] if side == ">=" else rho <= found["tau"] for rho in found["rho_line"]]
    assert found["tau_side"] == side
    assert crossed.index(True) == found["first_pruned_scale"]
    assert found["rho"] == pytest.approx(found["rho_line"], abs=1e-4)


def test_constant_rho_starts_at_the_earliest_scale(tiny):
    """No tau tells the scales apart, so the equation's first crossing is the first scale that may be pruned."""
    found = toprovar_schedule(synthetic_measurements(tiny, rho_slope=0.0), tiny, 1.3).provenance["toprovar"]
    assert tiny.sizes[found["first_pruned_scale"] - 1] == (4, 4)


def test_pruned_tokens_take_the_update_of_the_last_whole_scale(tiny):
    schedule = toprovar_schedule(synthetic_measurements(tiny), tiny, 6.0)
    first = schedule.provenance["toprovar"]["first_pruned_scale"]
    rules = [rule.tokens for rule in schedule.scales if rule.prunes_tokens]
    assert len(rules) == len(tiny.sizes) - first > 1
    assert {(rule.fill, rule.cache_scale, rule.score) for rule in rules} == {("cache", first - 1, "entropy")}
    assert all(rule.run and rule.guidance and not rule.skip_layers for rule in schedule.scales)


def test_tokens_are_ranked_by_the_middle_layer_of_highest_score(tiny):
    assert toprovar_schedule(synthetic_measurements(tiny), tiny, 1.3).entropy_layer == tiny.transformer.depth // 4


def test_representative_scale_is_the_papers_and_never_below_four_by_four():
    sizes = load_profile("infinity-2b").sizes
    assert (len(sizes), representative_scale(sizes)) == (13, 5)
    assert representative_scale(((1, 1), (2, 2), (3, 3), (4, 4))) == 3


def test_flat_maps_are_prunable_and_do_not_break_the_score(tiny):
    """A map without structure has no ratio (0 in the sums): the layer scores 1, also where it is the median one."""
    measurements = synthetic_measurements(tiny)
    for scale in range(len(tiny.sizes)):
        measurements.sums[f"ratio.sum.{scale}"][:6] = 0
        measurements.sums[f"ratio.count.{scale}"][:6] = 0
    schedule = toprovar_schedule(measurements, tiny, 1.5)
    assert schedule.provenance["toprovar"]["score"][:6] == [1.0] * 6
    assert speedup(schedule, tiny) == pytest.approx(1.5, rel=0.01)


def test_unreachable_target_names_the_highest_and_the_remedy(tiny):
    measurements = synthetic_measurements(tiny)
    with pytest.raises(
        ScheduleError, match=r"speed-up 1e\+06 is beyond policy toprovar on tiny: .*ask for less.*skip-N"
    ) as caught:
        toprovar_schedule(measurements, tiny, 1e6)
    highest = float(str(caught.value).split("tiny: ")[1].split(" is the highest")[0])
    assert speedup(toprovar_schedule(measurements, tiny, highest), tiny) == pytest.approx(highest, rel=0.01)


@pytest.mark.parametrize("target", [0.5, float("nan"), float("inf"), -1.0])
def test_target_that_is_no_speedup_is_refused(tiny, target):
    with pytest.raises(ScheduleError, match="must be a number >= 1"):
        toprovar_schedule(synthetic_measurements(tiny), tiny, target)


def test_measurements_of_another_model_or_geometry_are_refused(tiny):
    measurements = synthetic_measurements(tiny)
    with pytest.raises(MeasurementError, match="model tiny, not infinity-2b"):
        toprovar_schedule(measurements, load_profile("infinity-2b"), 1.5)
    with pytest.raises(MeasurementError, match="measurements are of scales"):
        toprovar_schedule(measurements, tiny.with_options(aspect_ratio=2.0), 1.5)


def test_model_without_rankable_scales_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(ModelProfile, "sizes", ((1, 1), (2, 2), (3, 3)))
    with pytest.raises(ScheduleError, match="no entropy map of 4 x 4"):
        toprovar_schedule(synthetic_measurements(tiny), tiny, 1.1)


def test_every_gap_is_told(tiny):
    found = toprovar_schedule(synthetic_measurements(tiny), tiny, 1.3).provenance["toprovar"]
    assert found["gaps"] == GAPS
    assert all(gap and "\n" not in gap for gap in GAPS.values())
