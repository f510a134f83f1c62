"""The text encoder that `bench` times: the released sizes, run on prompts of the length asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matrix_cases import Case, model_of
from small_model import small_model
from toprovar.benchmarks.latency import text_encoder
from toprovar.models.load import LoadedModel
from toprovar.models.text.random_features import RandomTextEncoder
from toprovar.profiles.model import load_profile

transformers = pytest.importorskip("transformers", reason="needs transformers")
SMALL = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
    "llm": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), [("infinity-2b", 1.22), ("hart-0.7b", 1.54)])
def test_sizes_are_those_of_the_release(name: str, billions: float) -> None:
    """Weights of flan-t5-xl's encoder, and of Qwen2 with 1.5 billion, embeddings included."""
    with torch.device("meta"):
        encoder = text_encoder.random_encoder(transformers, load_profile(name))
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e9, 2) == billions
    assert encoder.config.hidden_size == load_profile(name).transformer.text_channels


@pytest.mark.parametrize(("name", "tokens"), [("infinity-2b", 7), ("hart-0.7b", 300)])
def test_random_encoders_run_on_the_prompts_of_a_call(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile(name)
    kind, encoder, _ = text_encoder.ARCHITECTURES[profile.text.kind]
    monkeypatch.setitem(text_encoder.ARCHITECTURES, profile.text.kind, (kind, encoder, SMALL[profile.text.kind]))
    text = RandomTextEncoder(32, 512, 0, profile.transformer.text_tokens)
    found = text_encoder.text_encoder(as_if(profile.name, text), 2, 7)
    assert found is not None
    label, encode = found
    assert label == f"{profile.text.source}, random weights"
    features = encode()
    assert features.shape == (2, tokens, 32)
    assert torch.isfinite(features).all()
    assert features.std() > 0


def test_a_bundled_encoder_is_the_one_that_is_timed() -> None:
    model = small_model()
    found = text_encoder.text_encoder(model, 3, 5)
    assert found is not None
    assert found[1]().shape[:2] == model.text.encode_prompts(["word word word word"] * 3).features.shape[:2]


def test_classes_have_none() -> None:
    assert text_encoder.text_encoder(model_of(Case("var", "dense", 1.0, True)), 1, 5) is None


def as_if(name: str, text: RandomTextEncoder) -> LoadedModel:
    """A small model's weights under another profile."""
    return replace(small_model(), profile=load_profile(name), text=text)
