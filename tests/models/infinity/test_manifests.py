"""Our state dicts against the official ones, key by key: names, shapes, number of parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_files import golden_folder
from toprovar.models.infinity.transformer import Infinity
from toprovar.models.infinity.vae import BsqVae
from toprovar.profiles.infinity import TransformerConfig, VaeConfig
from toprovar.profiles.model import load_profile

MANIFESTS = golden_folder().parent / "manifests"
PROFILES = {
    "infinity_2b": "infinity-2b",
    "infinity_8b": "infinity-8b",
    "infinity_8b_512x512": "infinity-8b-512",
    "infinity_layer12": "infinity-125m",
    "infinity_layer24": "infinity-1b",
}


def _files(pattern: str) -> list[Any]:
    found = sorted(MANIFESTS.glob(pattern))
    reason = f"no manifests of the official checkpoints in {MANIFESTS}"
    return [pytest.param(p, id=p.stem) for p in found] or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


def _check(module: torch.nn.Module, manifest: dict[str, Any]) -> None:
    ours = {key: [*value.shape] for key, value in module.state_dict().items()}
    assert ours == {key: shape for key, (shape, _) in manifest["tensors"].items()}
    assert sum(p.numel() for p in module.parameters()) == manifest["num_parameters"]


@pytest.mark.parametrize("path", _files("infinity_*.json"))
def test_transformer(path: Any) -> None:
    manifest = json.loads(path.read_text())
    kwargs, vae = manifest["constructor_kwargs"], manifest["vae"]
    config = TransformerConfig(
        depth=kwargs["depth"],
        width=kwargs["embed_dim"],
        heads=kwargs["num_heads"],
        block_chunks=kwargs["block_chunks"],
        text_channels=kwargs["text_channels"],
        text_maxlen=kwargs["text_maxlen"],
        bits=vae["codebook_dim"],
        patchify=bool(vae["apply_spatial_patchify"]),
        mlp_ratio=kwargs["mlp_ratio"],
    )
    if path.stem in PROFILES:
        assert load_profile(PROFILES[path.stem]).transformer == config
    with torch.device("meta"):
        _check(Infinity(config), manifest)


@pytest.mark.parametrize("path", _files("bsq_vae_*.json"))
def test_vae(path: Any) -> None:
    manifest = json.loads(path.read_text())
    given, fixed = manifest["constructor"], manifest["fixed_args"]
    config = VaeConfig(
        bits=given["codebook_dim"],
        base_channels=fixed["base_ch"],
        channel_mult=tuple(given["decoder_ch_mult"]),
        res_blocks=fixed["num_res_blocks"],
    )
    assert config.stride == given["patch_size"]
    with torch.device("meta"):
        _check(BsqVae(config), manifest)
