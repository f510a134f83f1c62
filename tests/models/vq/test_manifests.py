"""The VQVAE's state dict against the official one, key by key."""

from __future__ import annotations

import json

import pytest
import torch
from golden_files import golden_folder
from toprovar.models.checkpoint import OFFICIAL_EXTRAS
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.vq import VqConfig

FILES = sorted((golden_folder().parent / "manifests").glob("var_vqvae_*.json"))


@pytest.mark.parametrize("path", FILES or [pytest.param(None, marks=pytest.mark.skip(reason="no manifests of VQVAEs"))])
def test_vae(path) -> None:
    manifest = json.loads(path.read_text())
    given = manifest["constructor"]
    config = VqConfig(
        vocabulary=given["vocab_size"],
        latent_channels=given["z_channels"],
        base_channels=given["ch"],
        channel_mult=tuple(given["ch_mult"]),
        res_blocks=given["num_res_blocks"],
    )
    assert config == VqConfig()
    with torch.device("meta"):
        vae = VqVae(config)
    ours = {key: [*value.shape] for key, value in vae.state_dict().items()}
    theirs = {key: shape for key, (shape, _) in manifest["tensors"].items()}
    assert {key for key in theirs if key not in ours} == {"quantize.ema_vocab_hit_SV"} <= OFFICIAL_EXTRAS
    assert ours == {key: theirs[key] for key in ours}
    assert sum(p.numel() for p in vae.parameters()) == manifest["num_parameters"]
