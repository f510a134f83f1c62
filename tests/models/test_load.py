"""From what a user points at to a model: the official file forms, strictness, digests, random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_model import small_model, small_profile
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.errors import CheckpointError
from toprovar.profiles.model import FOLDER, load_profile


def test_flat_pth_and_nested_vae_as_released(tmp_path: Path) -> None:
    """A flat state dict for the transformer, {'vae': state dict} for the VAE, both through weights_only."""
    model = small_model()
    torch.save(model.transformer.state_dict(), tmp_path / "t.pth")
    torch.save({"vae": model.vae.state_dict(), "epoch": 3}, tmp_path / "v.pth")
    save_file(model.text.encoder.state_dict(), tmp_path / "w.safetensors")  # type: ignore[attr-defined]
    options = WeightOptions(
        weights=str(tmp_path / "t.pth"), vae=str(tmp_path / "v.pth"), text_encoder=str(tmp_path / "w.safetensors")
    )
    loaded = load_model(small_profile(), options)
    for ours, theirs in ((loaded.transformer, model.transformer), (loaded.vae, model.vae)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert set(loaded.digests) == {"transformer/t.pth", "vae/v.pth", "text_encoder/w.safetensors"}
    assert all(len(digest) == 64 for digest in loaded.digests.values())


def test_wrong_size_lists_all_differences(tmp_path: Path) -> None:
    state = dict(small_model().transformer.state_dict())
    state["surprise"] = state.pop("head.bias")
    state["pos_start"] = state["pos_start"][..., :3].clone()
    torch.save(state, tmp_path / "t.pth")
    with pytest.raises(CheckpointError) as error:
        load_model(small_profile(), WeightOptions(weights=str(tmp_path / "t.pth"), vae="random"))
    for part in ("1 missing: head.bias", "1 unexpected: surprise", "pos_start [1, 1, 3] instead of [1, 1, 64]"):
        assert part in str(error.value)


def test_random_weights_are_a_function_of_the_seed() -> None:
    a, b, c = (load_model(small_profile(), WeightOptions(weights="random", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a.transformer.head.weight, b.transformer.head.weight)
    assert not torch.equal(a.transformer.head.weight, c.transformer.head.weight)
    assert a.weights_digest() == b.weights_digest() != c.weights_digest()


def test_profile_without_weights_says_what_to_pass() -> None:
    with pytest.raises(CheckpointError, match="pass a path or `--weights random`"):
        load_model(load_profile("infinity-1b"), WeightOptions())


def test_random_profile_with_t5_needs_no_download() -> None:
    tiny_t5 = replace(small_profile(), text=replace(small_profile().text, kind="t5", source="google/flan-t5-xl"))
    model = load_model(tiny_t5, WeightOptions(weights="random"))
    features = model.text.encode_prompts(["a red star", "one"])
    assert features.lengths.tolist() == [4, 2]
    assert torch.equal(features.features, model.text.encode_prompts(["a red star", "one"]).features)


def test_tiny_ships_whole_and_small() -> None:
    """Within 24 MB with the scorer; loads strictly; every value finite."""
    folder = FOLDER / "tiny"
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= 24_000_000
    model = load_model(load_profile("tiny"), WeightOptions())
    for module in (model.transformer, model.vae):
        assert all(bool(torch.isfinite(t).all()) for t in module.state_dict().values() if t.is_floating_point())
    image, size = load_profile("tiny").image_size, load_profile("tiny").sizes
    assert image == (256, 256)
    assert (len(size), size[-1]) == (10, (32, 32))
