"""HART from files laid out like the released ones, and what is told where something does not fit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hart_model import small_model, small_profile
from safetensors.torch import save_file
from toprovar.models import load
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.errors import CheckpointError
from toprovar.profiles.model import load_profile


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """`ema_model.bin` with the tables it stores, and a tokenizer's folder with the discriminator of its training."""
    model, vae = small_model()
    tables = {"lvl_1L": torch.zeros(1, 109, dtype=torch.int64), "attn_bias_for_masking": torch.zeros(1, 1, 109, 109)}
    torch.save({**model.state_dict(), **tables}, tmp_path / "ema_model.bin")
    (tmp_path / "tokenizer").mkdir()
    state = {f"vae.{name}": tensor.contiguous() for name, tensor in vae.state_dict().items()}
    state |= {"vae.quantize.ema_vocab_hit_SV": torch.zeros(5, 96), "disc.main.0.weight": torch.zeros(4, 3, 4, 4)}
    save_file(state, tmp_path / "tokenizer" / "model.safetensors")
    (tmp_path / "system_prompt.txt").write_text("draw:")
    return tmp_path


def options(release: Path) -> WeightOptions:
    return WeightOptions(weights=str(release / "ema_model.bin"), vae=str(release / "tokenizer"), text_encoder=str(release))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Arguments with which the text encoder was loaded."""
    calls: list[tuple[object, ...]] = []

    def remember(*args: object, **kwargs: object) -> SimpleNamespace:
        calls.append(args)
        return SimpleNamespace(system_prompt="draw:")

    monkeypatch.setattr(load.LlmTextEncoder, "load", remember)
    return calls


def test_released_files_load_key_by_key(release: Path, asked: list[tuple[object, ...]]) -> None:
    loaded = load_model(small_profile(), options(release))
    for ours, theirs in zip((loaded.transformer, loaded.vae), small_model(), strict=True):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert asked == [(str(release), 7, "right")]
    assert loaded.text_source["kind"] == "llm"
    files = {"transformer/ema_model.bin", "vae/model.safetensors", "text_encoder/system_prompt.txt"}
    assert set(loaded.digests) == {*files, "text_encoder"}
    assert loaded.digests["text_encoder/system_prompt.txt"] == hashlib.sha256(b"draw:").hexdigest()


def test_a_text_encoder_that_cannot_be_had_is_told_before_weights_are_read(release: Path) -> None:
    """The system prompt was missed after gigabytes of weights had been fetched."""
    for encoder, message in ((str(release / "tokenizer"), r"no system_prompt\.txt"), (None, "no text encoder is known")):
        with pytest.raises(CheckpointError, match=message):
            load_model(small_profile(), replace(options(release), weights="/nowhere.bin", text_encoder=encoder))


def test_another_shape_is_refused(release: Path) -> None:
    profile = small_profile()
    other = replace(profile, transformer=replace(profile.transformer, diffusion_depth=2))
    with pytest.raises(
        CheckpointError, match=r"ema_model\.bin: weights do not fit the model: 8 missing: diffloss\.net\.res_blocks\.1"
    ):
        load_model(other, options(release))


def test_random_weights_need_no_language_model() -> None:
    loaded = load_model(small_profile(), WeightOptions(weights="random"))
    features = loaded.text.encode_prompts(["a red cube", "one " * 20])
    assert features.features.shape == (2, 7, 24)
    assert features.lengths.tolist() == [4, 7]
    assert features.cut == (False, True)
    assert features.features.abs().sum(dim=-1).min() > 0


def test_the_shipped_profile_is_the_released_shape() -> None:
    profile = load_profile("hart-0.7b")
    assert profile.image_size == (1024, 1024)
    assert sum(h * w for h, w in profile.sizes) == 9451
    assert profile.text.max_length == profile.transformer.text_tokens
