"""Rungs: each image ends exactly as its rung alone would, whatever it shares a batch with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import small_profile
from small_rungs import DECIDED, measured, small, text_and_noise, with_rungs
from small_var import CLASSES, small_var_profile
from toprovar.models.family import build_steps
from toprovar.models.generate import generate, image_noise
from toprovar.models.load import WeightOptions, load_model
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.baselines import baseline
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.plan import plan_paths, plan_scales
from toprovar.profiles.schedule import Schedule
from torch import Tensor

IMAGES = [0, 1, 2, 3]


def draw(schedule: Schedule, profile: ModelProfile, images: list[int]) -> tuple[Tensor, tuple[str, ...]]:
    return generate_rungs(build_rungs(small(profile), schedule), *text_and_noise(profile, images))


def draw_path(schedule: Schedule, profile: ModelProfile, name: str, image: int) -> Tensor:
    """One image as a rung alone, without any decision."""
    path = schedule.paths[[rung.name for rung in schedule.rungs].index(name)]
    model = small(profile)
    return generate(model.transformer, build_steps(model, path), *text_and_noise(profile, [image]))[0]


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("features", ["entropy", "detail"])
def test_every_image_ends_as_its_own_rung(features: str, cfg: float) -> None:
    profile = small_profile().with_options(cfg=cfg)
    schedule = with_rungs(features, profile)
    summed, picked = draw(schedule, profile, IMAGES)
    assert set(picked) == {"whole", "fewer", "short"}
    order = measured(features, profile, IMAGES)[:, 0].argsort()
    assert [picked[index] for index in order] == ["whole", "fewer", "fewer", "short"]
    for image, name in enumerate(picked):
        alone, again = draw_path(schedule, profile, name, image), draw(schedule, profile, [image])
        assert again[1] == (name,)
        torch.testing.assert_close(summed[image], alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(again[0][0], alone, rtol=0, atol=1e-4)


def test_images_do_not_depend_on_order_or_company() -> None:
    profile, schedule = small_profile(), with_rungs("entropy")
    summed, picked = draw(schedule, profile, IMAGES)
    shuffled, names = draw(schedule, profile, [2, 0, 3, 1])
    assert names == tuple(picked[index] for index in (2, 0, 3, 1))
    torch.testing.assert_close(shuffled, summed[[2, 0, 3, 1]], rtol=0, atol=1e-4)


def test_scales_that_compute_the_same_are_one_plan() -> None:
    """The six rungs of skipvar run 36 scales, 9 different ones: 4 that all share, 2 late ones with guidance, 3 without."""
    schedule = baseline("skipvar", small_profile())
    paths = plan_paths(schedule)
    distinct = {(plan.scale, plan.guidance) for path in paths for plan in path}
    assert len({plan for path in paths for plan in path}) == len(distinct) == 9
    assert sum(len(path) for path in paths) == 3 * 7 + 6 + 5 + 4
    for path in paths:
        assert path[:4] == paths[0][:4]


def test_shared_scales_hand_on_what_any_rung_reads() -> None:
    whole, fewer, short = plan_paths(with_rungs("entropy"))
    shared = whole[DECIDED]
    assert shared == fewer[DECIDED] == short[DECIDED]
    assert shared.writes_branches == (0, 1)
    assert shared.writes_entropy
    assert not shared.last
    assert fewer[DECIDED + 1].drops_guidance
    assert whole[-1].last


def test_plans_of_a_schedule_without_rungs_are_its_own() -> None:
    schedule = baseline("fastvar", small_profile())
    assert plan_paths(schedule) == (plan_scales(schedule),)


def test_rungs_are_not_run_by_accident() -> None:
    schedule = with_rungs("entropy")
    with pytest.raises(ScheduleError, match="has rungs; run it with build_rungs"):
        build_steps(small(), schedule)
    assert len(build_steps(small(), schedule.paths[1])) == 7


def test_a_rung_may_end_with_the_decision() -> None:
    profile = small_profile()
    schedule = with_rungs("entropy")
    ended = tuple(replace(rule, run=False) for rule in schedule.rungs[2].scales)
    schedule = replace(schedule, rungs=(*schedule.rungs[:2], replace(schedule.rungs[2], scales=ended)))
    summed, picked = draw(schedule, profile, IMAGES)
    image = picked.index("short")
    torch.testing.assert_close(summed[image], draw_path(schedule, profile, "short", image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.8, 1.75])
def test_skipvar_draws_what_its_classes_say(ratio: float) -> None:
    """Whatever the released models pick for random weights, it is that baseline's image."""
    profile = replace(small_profile(), aspect_ratio=ratio)
    summed, picked = draw(baseline("skipvar", profile), profile, IMAGES[:2])
    for image, name in enumerate(picked):
        model = small(profile)
        expected = generate(model.transformer, build_steps(model, baseline(name, profile)), *text_and_noise(profile, [image]))[
            0
        ]
        torch.testing.assert_close(summed[image], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("policy", ["fastvar", "skipvar"])
def test_other_families_follow_the_same_rules(policy: str) -> None:
    """VAR, whose layers have two branches and whose tokens are indices: an image alone and in a batch is the same."""
    profile = small_var_profile(patch_nums=(1, 2, 3, 4, 5, 6, 7, 8))
    model = load_model(profile, WeightOptions(weights="random"))
    schedule, images = baseline(policy, profile), [0, 1, 2]

    def run(images: list[int]) -> tuple[Tensor, tuple[str, ...]]:
        text = model.text.encode_prompts([CLASSES[i] for i in images])
        inputs = (text.features, text.lengths, image_noise(profile, images))
        if schedule.rungs:
            return generate_rungs(build_rungs(model, schedule), *inputs)
        return generate(model.transformer, build_steps(model, schedule), *inputs), ("",) * len(images)

    summed, picked = run(images)
    assert torch.isfinite(summed).all()
    for image in images:
        alone, name = run([image])
        assert name == (picked[image],)
        torch.testing.assert_close(alone[0], summed[image], rtol=0, atol=1e-4)
