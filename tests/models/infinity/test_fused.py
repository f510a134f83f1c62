"""The fused blocks against the plain ones: on the definitions of their kernels, and on the kernels on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_files import Golden, golden_files
from reuse_cases import reusing
from small_model import PROMPTS, everything_at_once, small_model, small_profile
from toprovar.models.family import build_steps, noise_of
from toprovar.models.generate import Noise, condition_rows, generate
from toprovar.models.infinity.fused import FusedSteps
from toprovar.models.infinity.step import ScaleStep
from toprovar.models.infinity.transformer import Infinity
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.geometry import templates
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.plan import plan_scales
from toprovar.profiles.schedule import Schedule, TokenRule
from torch import Tensor

# another bit would show as 0.25; between a CPU and a GPU only the order of sums differs
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    # convolutions round fp32 to 10 bits by default
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return str(request.param)


def pruned(**tokens: object) -> Schedule:
    base = dense(small_profile())
    rules = list(base.scales)
    rules[6] = replace(rules[6], tokens=TokenRule(**tokens))  # type: ignore[arg-type]
    return replace(base, scales=tuple(rules))


SCHEDULES = {
    "dense": dense(small_profile()),
    "skip-2": baseline("skip-2", small_profile()),
    "noguide-3": baseline("noguide-3", small_profile()),
    "everything": everything_at_once(),
    "hold": pruned(kept=(100, 100), fill="hold"),
    "cache": pruned(kept=(256, 100), fill="cache", cache_scale=4),
    "cache the same": pruned(kept=(60, 60), fill="cache", cache_scale=4),
    "cache fewer": pruned(kept=(100, 30), fill="cache", cache_scale=4),
    "bypass": pruned(kept=(60, 60), fill="bypass"),
    "branch": pruned(kept=(100, 256), score="distance", fill="branch", cache_scale=4),
    "reuse": reusing(small_profile(), held=True),
}


def on(model: Infinity, device: str) -> Infinity:
    return model if device == "cpu" else copy.deepcopy(model).to(device)


def moved(noise: Noise, device: str) -> Noise:
    return [{name: value.to(device) for name, value in scale.items()} for scale in noise]


def request_of(profile: ModelProfile, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Noise]:
    """Features and lengths of prompts of different lengths, noise."""
    features = small_model().text.encode_prompts(PROMPTS[seed : seed + batch])
    seeds = range(seed, seed + batch)
    noise = [
        {name: torch.from_numpy(value) for name, value in noise_of(profile, seeds, scale).items()}
        for scale in range(len(profile.sizes))
    ]
    return features.features, features.lengths, noise


def fused(model: Infinity, profile: ModelProfile, schedule: Schedule, batch: int) -> FusedSteps:
    return FusedSteps(model, profile, plan_scales(schedule), batch)


def draw(steps: FusedSteps, text: Tensor, lengths: Tensor, noise: Noise, guided: bool = True) -> Tensor:
    device = str(steps.model.pos_start.device)
    with torch.inference_mode():
        rows = condition_rows(steps.model, text.to(device), lengths.to(device), guided)
        return steps.run(*rows, moved(noise, device)).cpu()


def plain(profile: ModelProfile, schedule: Schedule, inputs: tuple[Tensor, Tensor, Noise]) -> Tensor:
    model = replace(small_model(), profile=profile)
    return generate(model.transformer, build_steps(model, schedule), *inputs)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_equals_the_plain_blocks(name: str, batch: int, device: str) -> None:
    profile, schedule = small_profile(), SCHEDULES[name]
    inputs = request_of(profile, batch)
    found = draw(fused(on(small_model().transformer, device), profile, schedule, batch), *inputs)
    torch.testing.assert_close(found, plain(profile, schedule, inputs), rtol=0, atol=TOLERANCE[device])


def test_without_guidance(device: str) -> None:
    profile = small_profile().with_options(cfg=1.0)
    inputs = request_of(profile, 2)
    found = draw(fused(on(small_model().transformer, device), profile, dense(profile), 2), *inputs, False)
    torch.testing.assert_close(found, plain(profile, dense(profile), inputs), rtol=0, atol=TOLERANCE[device])


@pytest.mark.parametrize("ratio", templates())
def test_every_aspect_ratio(ratio: float, device: str) -> None:
    profile = small_profile().with_options(aspect_ratio=ratio)
    schedule = baseline("noguide-2", profile)
    inputs = request_of(profile, 1)
    found = draw(fused(on(small_model().transformer, device), profile, schedule, 1), *inputs)
    torch.testing.assert_close(found, plain(profile, schedule, inputs), rtol=0, atol=TOLERANCE[device])


def test_nothing_passes_from_one_image_to_the_next(device: str) -> None:
    profile = small_profile()
    steps = fused(on(small_model().transformer, device), profile, SCHEDULES["everything"], 1)
    first = draw(steps, *request_of(profile, 1))
    # the allocator hands out the memory of the last image again
    draw(steps, *request_of(profile, 1, seed=3))
    assert torch.equal(draw(steps, *request_of(profile, 1)), first)


def test_an_image_does_not_see_its_neighbours(device: str) -> None:
    profile = small_profile()
    steps = fused(on(small_model().transformer, device), profile, SCHEDULES["everything"], 2)
    text, lengths, noise = request_of(profile, 2)
    together = draw(steps, text, lengths, noise)
    other_text, other_noise = text.clone(), [{name: value.clone() for name, value in scale.items()} for scale in noise]
    other_text[1] += 1
    for scale in other_noise:
        scale["noise"][1] = 1 - scale["noise"][1]
    other = draw(steps, other_text, lengths, other_noise)
    assert torch.equal(other[0], together[0])
    assert not torch.equal(other[1], together[1])


def test_the_last_scale_takes_no_memory_of_its_own() -> None:
    """Its keys lie over those of the layer before; only the first layer needs room in front."""
    schedule = SCHEDULES["dense"]
    steps = fused(small_model().transformer, small_profile(), schedule, 1)
    tokens = [rule.count for rule in schedule.scales]
    assert steps.arena.shape[3] == tokens[-1] + schedule.layers * sum(tokens[:-1])


@pytest.mark.parametrize("path", golden_files("infinity"))
def test_the_official_model(path: Any, device: str) -> None:
    """Bits of every recorded call; with inserted guidance and negative prompts too."""
    data = Golden.read(path)
    for case in data.cases():
        profile = data.profile(case.call)
        model = Infinity(profile.transformer).eval()
        model.load_state_dict(data.weights(), strict=True)
        text, lengths = data.text(data.tensors["in.text"], case.lengths)
        negative = data.text(*case.negative) if case.negative else None
        noise = _split(case.fields.get("noise.u", data.tensors["noise.u"]), profile.sizes)
        schedule = dense(profile)
        steps = [ScaleStep(model, profile, plan).eval() for plan in plan_scales(schedule)]
        expected = generate(model, steps, text, lengths, noise, negative)
        on_device = on(model, device)
        with torch.inference_mode():
            rows = condition_rows(model, text, lengths, schedule.guided, negative)
            ours = fused(on_device, profile, schedule, len(text))
            found = ours.run(*(part.to(device) for part in rows), moved(noise, device)).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[device], msg=lambda m, n=case.name: f"{n}: {m}")


def _split(noise: Tensor, sizes: Sequence[tuple[int, int]]) -> Noise:
    return [{"noise": part} for part in noise.split([h * w for h, w in sizes], dim=1)]
