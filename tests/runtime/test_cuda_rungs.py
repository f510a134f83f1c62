"""Rungs on the target `cuda`, without a GPU: what its graphs would run is what torch draws, image by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from direct_graphs import without_a_gpu
from small_model import small_model, small_profile
from small_rungs import text_and_noise, with_rungs
from small_var import CLASSES, small_var
from toprovar.compile.cuda_bundle import build_cuda_bundle
from toprovar.models.generate import Noise, condition_rows, image_noise
from toprovar.models.infinity.fused import FusedSteps
from toprovar.models.infinity.vae import to_uint8
from toprovar.models.load import LoadedModel
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.models.state import State
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.decision import Decision, LinearModel
from toprovar.profiles.rules import Rung
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.cuda_engine import make_program
from toprovar.runtime.cuda_rungs import RungProgram
from torch import Tensor

IMAGES = [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch)


@torch.inference_mode()
def draw(model: LoadedModel, schedule: Schedule, text: Tensor, lengths: Tensor, noise: Noise) -> tuple[Tensor, tuple[str, ...]]:
    rows, row_lengths = condition_rows(model.transformer, text, lengths, schedule.guided)
    program = make_program(model, schedule, model.decoder, rows, noise)
    assert isinstance(program, RungProgram)
    program.text.copy_(rows)
    program.lengths.copy_(row_lengths)
    return program.replay(), program.picked


def compared(model: LoadedModel, schedule: Schedule, text: Tensor, lengths: Tensor, noise: Noise) -> tuple[str, ...]:
    pixels, picked = draw(model, schedule, text, lengths, noise)
    summed, expected = generate_rungs(build_rungs(model, schedule), text, lengths, noise)
    with torch.inference_mode():
        images = to_uint8(model.decoder(summed))
    assert picked == expected
    # fp32: a pixel may fall to the other side of a whole number
    assert int((pixels.int() - images.int()).abs().max()) <= 1
    return picked


def test_maps_of_tokens_stay_views_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that enlarges a map reads its channels side by side; an image's part of a batch's map must stay so."""
    strides: list[int] = []
    resume = FusedSteps.resume

    def watched(steps: FusedSteps, text: Tensor, lengths: Tensor, state: State, noise: Noise) -> Tensor:
        strides.extend(value.stride(1) for name, value in state.items() if name.startswith("delta"))
        return resume(steps, text, lengths, state, noise)

    monkeypatch.setattr(FusedSteps, "resume", watched)
    draw(small_model(), with_rungs("entropy"), *text_and_noise(small_profile(), [0]))
    assert set(strides) == {1}


@pytest.mark.parametrize(("features", "cfg"), [("entropy", 3.0), ("detail", 3.0), ("entropy", 1.0)])
def test_fused_blocks_draw_what_torch_draws(features: str, cfg: float) -> None:
    """Keys of the shared scales are found again by rungs that keep, drop rows, or end early."""
    profile = small_profile().with_options(cfg=cfg)
    model = replace(small_model(), profile=profile)
    picked = compared(model, with_rungs(features, profile), *text_and_noise(profile, IMAGES))
    assert set(picked) == {"whole", "fewer", "short"}


def test_an_image_does_not_depend_on_what_others_pick() -> None:
    schedule = with_rungs("entropy")
    text, lengths, noise = text_and_noise(small_profile(), IMAGES)
    pixels, picked = draw(small_model(), schedule, text, lengths, noise)
    turned = [{name: value.flip(0) for name, value in scale.items()} for scale in noise]
    again, other = draw(small_model(), schedule, text.flip(0), lengths.flip(0), turned)
    assert other == picked[::-1]
    assert int((again.flip(0).int() - pixels.int()).abs().max()) <= 1
    # one image alone is read where it stands, not copied
    own = [{name: value[1:2] for name, value in scale.items()} for scale in noise]
    alone, (name,) = draw(small_model(), schedule, text[1:2], lengths[1:2], own)
    assert name == picked[1]
    assert int((alone[0].int() - pixels[1].int()).abs().max()) <= 1


def test_guidance_dropped_before_the_decision() -> None:
    schedule = with_rungs("entropy")
    rules = [replace(rule, guidance=rule.scale < 3) for rule in schedule.scales]
    rungs = tuple(replace(r, scales=tuple(replace(rule, guidance=False) for rule in r.scales)) for r in schedule.rungs)
    compared(small_model(), replace(schedule, scales=tuple(rules), rungs=rungs), *text_and_noise(small_profile(), IMAGES))


@pytest.mark.parametrize(("rung", "images"), [("skip-3", [0]), ("skip-1", [0, 1]), ("skip-1", [0])])
def test_a_rung_may_end_at_the_decision(rung: str, images: list[int]) -> None:
    schedule = baseline("skipvar", small_profile())
    assert schedule.decision is not None
    model = LinearModel(mean=(0, 0), scale=(1, 1), coef=((0, 0),), intercept=(0,), rungs=(rung,))
    schedule = replace(schedule, decision=replace(schedule.decision, models=(model,)))
    assert compared(small_model(), schedule, *text_and_noise(small_profile(), images)) == (rung,) * len(images)


@pytest.mark.parametrize("rung", ["whole", "short"])
def test_families_without_fused_blocks(rung: str) -> None:
    model = small_var()
    base, always = (
        dense(model.profile),
        LinearModel(mean=(0,) * 3, scale=(1,) * 3, coef=((0,) * 3,), intercept=(0,), rungs=(rung,)),
    )
    short = tuple(replace(rule, run=rule.scale < 5) for rule in base.scales[4:])
    decision = Decision(scale=3, features="entropy", models=(always,))
    schedule = replace(base, rungs=(Rung(name="whole"), Rung(name="short", scales=short)), decision=decision)
    text = model.text.encode_prompts(list(CLASSES))
    picked = compared(model, schedule, text.features, text.lengths, image_noise(model.profile, IMAGES))
    assert picked == (rung,) * 4


def test_a_bundle_lists_what_it_runs(tmp_path: Path) -> None:
    manifest = build_cuda_bundle(small_model(), with_rungs("detail"), tmp_path / "engine", {"kind": "words"}, lambda _: None)
    assert [rung.name for rung in manifest.rungs] == ["whole", "fewer", "short"]
    assert manifest.view is not None
    assert np.argmin([rung.flops_speedup for rung in manifest.rungs]) == 0
