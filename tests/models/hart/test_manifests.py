"""The state dicts of HART and its tokenizer against the official ones, key by key."""

from __future__ import annotations

import json

import pytest
import torch
from golden_files import golden_folder
from toprovar.models.checkpoint import OFFICIAL_EXTRAS
from toprovar.models.hart.transformer import Hart
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.model import load_profile

FOLDER = golden_folder().parent / "manifests"


def _manifest(name):
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no {path.name} in {FOLDER}")
    return json.loads(path.read_text())


def _compare(module: torch.nn.Module, official: dict[str, list[int]]) -> None:
    ours = {key: [*value.shape] for key, value in module.state_dict().items()}
    assert set(official) - set(ours) <= OFFICIAL_EXTRAS
    assert ours == {key: shape for key, shape in official.items() if key not in OFFICIAL_EXTRAS}


def test_transformer() -> None:
    manifest, config = _manifest("hart_0.7b"), load_profile("hart-0.7b").transformer
    given = manifest["kwargs_used_here"]
    assert (config.depth, config.width, config.heads) == (given["depth"], given["embed_dim"], given["num_heads"])
    assert (config.text_channels, config.text_tokens) == (given["context_dim"], given["context_token"])
    assert config.diffusion_steps == int(given["num_sampling_steps"])
    assert list(config.patch_nums) == given["patch_nums"]
    with torch.device("meta"):
        model = Hart(config)
    _compare(model, {key: shape for key, (shape, _) in manifest["tensors"].items()})
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]


def test_tokenizer() -> None:
    """The released file has the VQVAE under `vae.` beside the discriminator of its training."""
    manifest = _manifest("hart_tokenizer")
    with torch.device("meta"):
        vae = VqVae(load_profile("hart-0.7b").vae)
    official = {key.removeprefix("vae."): shape for key, (shape, _) in manifest["tensors"].items() if key.startswith("vae.")}
    _compare(vae, official)
    assert sum(p.numel() for p in vae.parameters()) == manifest["num_parameters_vae"]
