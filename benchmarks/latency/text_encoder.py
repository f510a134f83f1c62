"""The text encoder before an image: timed apart, since its time depends on no schedule and repeated prompts skip it.

With random weights it is the released encoder's architecture, through transformers, as the run time runs it: bf16, eager.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ...models.load import LoadedModel
from ...models.text.random_features import RandomTextEncoder
from ...profiles.model import ModelProfile

T5_XL = {
    "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""google/flan-t5-xl."""
QWEN2_1_5B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2,
}  # fmt: skip
"""The language model of Qwen2-VL with 1.5 billion weights."""
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5EncoderModel", T5_XL),
    "llm": ("Qwen2Config", "Qwen2Model", QWEN2_1_5B),
}
"""Of kinds of encoders that are no part of a model's own weights: configuration, model, sizes."""

Encode = Callable[[], torch.Tensor]


def text_encoder(model: LoadedModel, batch: int, text_tokens: int) -> tuple[str, Encode] | None:
    """What encodes the prompts of one call, and its name in words.

    Args:
        model: On the device to run on.
        batch: Prompts.
        text_tokens: Of each, where the model does not fix them.

    Returns:
        None where there is nothing to run: classes are looked up, and random features need transformers to be timed.
    """
    profile, text = model.profile, model.text
    if profile.text.kind == "classes":
        return None
    if not isinstance(text, RandomTextEncoder):
        prompts = [" ".join(["word"] * max(1, text_tokens - 1))] * batch
        return profile.text.source or profile.text.kind, lambda: text.encode_prompts(prompts).features
    try:
        import transformers
    except ImportError:
        print("text encoder not timed: it needs transformers; run `pip install toprovar[t5]`", file=sys.stderr)
        return None
    with model.weight.device:
        encoder = random_encoder(transformers, profile).to(torch.bfloat16)
    ids = torch.randint(1, encoder.config.vocab_size, (batch, text.tokens or text_tokens), device=model.weight.device)
    mask = torch.ones_like(ids)

    def encode() -> torch.Tensor:
        # as with a prompt, a mask says what is padding
        features: torch.Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return features.float()

    return f"{profile.text.source}, random weights", encode


def random_encoder(transformers: Any, profile: ModelProfile) -> Any:
    """The architecture of a profile's encoder, its weights at random."""
    config, kind, sizes = ARCHITECTURES[profile.text.kind]
    return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval().requires_grad_(False)
