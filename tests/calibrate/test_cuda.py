"""Calibration on a GPU: every entropy comes from the FAE kernels, and the statistics are those of the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import PROMPTS, prompt_set, small_model
from toprovar.calibrate.run import measure
from toprovar.calibrate.search.actions import Change, Plan, build
from toprovar.calibrate.search.trials import Trials
from toprovar.models.load import LoadedModel
from toprovar.models.text.words import WordTextEncoder
from toprovar.profiles.baselines import baseline, dense

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_the_gpu() -> LoadedModel:
    """The small model there; random weights drawn on a GPU would be others."""
    small = small_model()
    transformer, vae = (copy.deepcopy(module).to("cuda") for module in (small.transformer, small.vae))
    assert isinstance(small.text, WordTextEncoder)
    return replace(small, transformer=transformer, vae=vae, text=WordTextEncoder(copy.deepcopy(small.text.encoder).to("cuda")))


def test_the_dense_model_is_measured_by_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toprovar.plugins.flash_attention_entropy import launch

    launched: list[torch.Size] = []
    forward = launch.forward

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        launched.append(k.shape)
        return forward(q, k, v, scale)

    monkeypatch.setattr(launch, "forward", counted)
    model, prompts = on_the_gpu(), prompt_set()
    found = measure(model, prompts, 5, tmp_path / "cuda", progress=False)
    layers, scales = model.profile.transformer.depth, len(model.profile.sizes)
    assert len(launched) == len(prompts.prompts) * layers * scales
    expected = measure(small_model(), prompts, 5, tmp_path / "cpu", progress=False)
    for scale in range(scales):
        np.testing.assert_allclose(found.mean_entropy(scale), expected.mean_entropy(scale), rtol=2e-3, atol=1e-6)


def test_trials_on_fused_steps_measure_what_the_modules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels may fall to the other side of a whole number, no more."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    profile = small_model().profile
    prompts = [(prompt, 3 + index) for index, prompt in enumerate(PROMPTS[:2])]
    last = len(profile.sizes) - 1
    plans = [
        Plan(last + 1, last + 1, {last: Change(0.25, "cache", skipped=(1,))}),
        Plan(last + 1, last - 1, {last - 1: Change(0.5), last: Change(0.5)}),
        Plan(last + 1, last - 1, {last: Change(reused=(0,))}, reuse=True),
    ]
    schedules = [dense(profile), *(build(plan, profile) for plan in plans), baseline("skip-1", profile)]
    found = Trials(on_the_gpu(), prompts, "key").measure([*schedules, baseline("fastvar", profile)])
    expected = Trials(small_model(), prompts, "key").measure([*schedules, baseline("fastvar", profile)])
    assert found[0].squared_error == (0.0, 0.0)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours.squared_error, theirs.squared_error, rtol=0.02, atol=0.02)
