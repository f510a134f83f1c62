"""Checkpoints laid out as the official files: tables that are recomputed may be in them, anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_var import small_var, small_var_profile
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.errors import CheckpointError


def _official(folder: Path) -> WeightOptions:
    model, tokens = small_var(), sum(h * w for h, w in small_var_profile().sizes)
    tables = {"lvl_1L": torch.zeros(1, tokens, dtype=torch.int64), "attn_bias_for_masking": torch.zeros(1, 1, tokens, tokens)}
    torch.save({**model.transformer.state_dict(), **tables}, folder / "var.pth")
    torch.save({**model.vae.state_dict(), "quantize.ema_vocab_hit_SV": torch.zeros(10, 48)}, folder / "vae.pth")
    return WeightOptions(weights=str(folder / "var.pth"), vae=str(folder / "vae.pth"))


def test_official_files_load_key_by_key(tmp_path: Path) -> None:
    loaded, expected = load_model(small_var_profile(), _official(tmp_path)), small_var()
    for ours, theirs in ((loaded.transformer, expected.transformer), (loaded.vae, expected.vae)):
        state = ours.state_dict()
        assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert set(loaded.digests) == {"transformer/var.pth", "vae/vae.pth"}
    assert loaded.text_source == {"kind": "classes", "names": []}


def test_another_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights do not fit the model: .* missing: blocks\.2\."):
        load_model(small_var_profile(depth=3), _official(tmp_path))
