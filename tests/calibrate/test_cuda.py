"""Calibration on a GPU: every entropy comes from the FAE kernels, and the statistics are those of the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import prompt_set, small_model
from toprovar.calibrate.run import measure
from toprovar.models.text.words import WordTextEncoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_the_dense_model_is_measured_by_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toprovar.plugins.flash_attention_entropy import launch

    launched: list[torch.Size] = []
    forward = launch.forward

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        launched.append(k.shape)
        return forward(q, k, v, scale)

    monkeypatch.setattr(launch, "forward", counted)
    # random weights drawn on a GPU would be others
    small = small_model()
    transformer, vae = (copy.deepcopy(module).to("cuda") for module in (small.transformer, small.vae))
    assert isinstance(small.text, WordTextEncoder)
    model = replace(small, transformer=transformer, vae=vae, text=WordTextEncoder(copy.deepcopy(small.text.encoder).to("cuda")))
    prompts = prompt_set()
    found = measure(model, prompts, 5, tmp_path / "cuda", progress=False)
    layers, scales = model.profile.transformer.depth, len(model.profile.sizes)
    assert len(launched) == len(prompts.prompts) * layers * scales
    expected = measure(small_model(), prompts, 5, tmp_path / "cpu", progress=False)
    for scale in range(scales):
        np.testing.assert_allclose(found.mean_entropy(scale), expected.mean_entropy(scale), rtol=2e-3, atol=1e-6)
