"""Guidance differences and layer updates that later scales reuse, in every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matrix_cases import FAMILIES, Case, model_of
from reuse_cases import reusing
from toprovar.models.family import build_steps, family_of
from toprovar.models.generate import image_noise, run_scales
from toprovar.models.load import LoadedModel
from toprovar.models.resize import resize
from toprovar.models.select import enlarged_tokens, scatter_tokens
from toprovar.models.state import State, narrow_rows
from toprovar.plugins.reused_tokens import reference
from toprovar.plugins.token_select import slots_of
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.plan import ScalePlan, plan_scales
from toprovar.profiles.schedule import Schedule

BATCH = 2


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return model_of(Case(request.param, "dense", 1.0, True))


def begin(model: LoadedModel) -> State:
    """The state before the first scale, of two prompts and their unconditional rows."""
    config, generator = model.transformer.config, torch.Generator().manual_seed(3)
    if not config.text_channels:
        return model.transformer.initial_state(*_classes(model))
    tokens = config.text_tokens or 5
    text = torch.randn(2 * BATCH, tokens, config.text_channels, generator=generator)
    return model.transformer.initial_state(text, torch.full((2 * BATCH,), tokens))


def _classes(model: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    text = model.text.encode_prompts(["3", "7"])
    other = model.transformer.unconditional(BATCH, text.features.shape[1]).to(text.features.dtype)
    return torch.cat([text.features, other]), torch.cat([text.lengths, text.lengths])


def outputs(model: LoadedModel, plans: tuple[ScalePlan, ...]) -> tuple[list[State], list[State]]:
    """The state before every scale, and what every scale returned."""
    state, noise = begin(model), image_noise(model.profile, range(BATCH))
    states, found = [], []
    with torch.inference_mode():
        for plan in plans:
            states.append(state)
            step = family_of(model.profile).step(model, plan)
            state = run_scales([step], state, noise, lambda _, out: found.append(State(out)))
    return states, found


def test_a_scale_guided_by_its_own_difference_is_the_guided_scale(model: LoadedModel) -> None:
    """c + (cfg - 1) (c - u) is cfg c + (1 - cfg) u: the dense result without the unconditional rows."""
    plans = plan_scales(dense(model.profile))
    place = len(plans) - 2
    whole = replace(plans[place], writes_difference=True)
    states, found = outputs(model, (*plans[:place], whole))
    ours = replace(plans[place], guidance=False, difference_from=place)
    state = narrow_rows(states[place] | {"difference": found[place]["difference"]}, BATCH)
    with torch.inference_mode():
        step = family_of(model.profile).step(model, ours)
        summed = run_scales([step], state, image_noise(model.profile, range(BATCH)))["summed"]
    torch.testing.assert_close(summed, found[place]["summed"], rtol=0, atol=1e-4)


def test_a_layer_that_reuses_its_own_update_is_the_layer_that_ran(model: LoadedModel) -> None:
    plans = plan_scales(dense(model.profile))
    place = len(plans) - 1
    states, found = outputs(model, (*plans[:place], replace(plans[place], writes_delta=(1,))))
    kept = tuple(0 if layer == 1 else count for layer, count in enumerate(plans[place].kept))
    layers = tuple(layer for layer in plans[place].layers if layer != 1)
    ours = replace(plans[place], kept=kept, layers=layers, reuse=((1, place),))
    with torch.inference_mode():
        step = family_of(model.profile).step(model, ours)
        state = states[place] | {"delta.1": found[place]["delta.1"]}
        summed = run_scales([step], state, image_noise(model.profile, range(BATCH)))["summed"]
    torch.testing.assert_close(summed, found[place]["summed"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("held", [False, True])
def test_later_scales_read_what_the_last_whole_one_left(model: LoadedModel, held: bool) -> None:
    schedule = reusing(model.profile, held)
    plans = plan_scales(schedule)
    source = len(plans) - 3
    assert [plan.writes_difference for plan in plans] == [index == source for index in range(len(plans))]
    assert [plan.writes_delta for plan in plans] == [(1,) if index == source else () for index in range(len(plans))]
    _, found = outputs(model, plans)
    assert found[source]["difference"].dtype == torch.float32
    assert found[source]["difference"].shape[-2:] == model.profile.sizes[source]
    plain = replace(schedule, scales=tuple(replace(rule, guidance_reuse=False) for rule in schedule.scales))
    _, without = outputs(model, plan_scales(plain))
    assert torch.isfinite(found[-1]["summed"]).all()
    assert not torch.equal(found[-1]["summed"], without[-1]["summed"])
    assert resize(found[source]["delta.1"], plans[-1].size).shape[-2:] == plans[-1].size


def test_a_model_that_guides_inside_its_layers_refuses() -> None:
    from toprovar.profiles.errors import ScheduleError

    model = model_of(Case("infinity", "dense", 1.0, True))
    profile = replace(model.profile, sampling=replace(model.profile.sampling, cfg_insertion_layer=(-1,)))
    with pytest.raises(ScheduleError, match="guides inside its layers"):
        build_steps(replace(model, profile=profile), reusing(profile))


def test_schedules_say_what_they_reuse_and_others_stay_as_they_were() -> None:
    profile = model_of(Case("infinity", "dense", 1.0, True)).profile
    schedule = reusing(profile)
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert not schedule.removes_nothing
    plain = baseline("skip-1+noguide-2", profile).to_dict()
    assert not any({"reuse_layers", "guidance_reuse"} & set(rule) for rule in plain["scales"])


@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_what_the_kernels_compute_is_what_the_modules_do(some: bool) -> None:
    """The definitions that the kernels are held to, against what runs off a GPU."""
    generator = torch.Generator().manual_seed(0)
    source, target, width = (3, 4), (6, 5), 16
    tokens = torch.randn(2, source[0] * source[1], width, generator=generator)
    grid = tokens.transpose(1, 2).unflatten(-1, source)
    index = torch.stack([torch.randperm(30, generator=generator)[:11].sort().values for _ in range(2)])
    wanted, count = (index, 11) if some else (None, 30)
    stream = torch.randn(2, count, width, generator=generator)
    for onto in (None, stream):
        expected = enlarged_tokens(grid, target, wanted, onto)
        torch.testing.assert_close(reference.enlarge(tokens, source, target, wanted, onto), expected)
    whole, part = torch.randn(2, 30, width, generator=generator), torch.randn(2, 11, width, generator=generator)
    expected = scatter_tokens(enlarged_tokens(grid, target, None, whole), index, part)
    torch.testing.assert_close(reference.put_back(whole, part, slots_of(index, 30), tokens, source, target), expected)
