"""The text encoder of HART: the last hidden states of a language model (Qwen2), through transformers.

A prompt is padded or cut to a fixed number of tokens, and a system prompt that asks for a description of an image stands in
front of it; the states of the system prompt are dropped, those of the padding are kept, as the transformer was trained to
attend to them. On a GPU the model runs in fp16, on the CPU in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...profiles.errors import CheckpointError, PromptError
from . import TextFeatures
from .system_prompt import read_system_prompt
from .t5 import read_pretrained

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LlmTextEncoder:
    """A tokenizer and a language model without its head, frozen.

    Attributes:
        tokenizer: A transformers tokenizer with a padding token.
        model: The model, in evaluation mode.
        tokens: Tokens T of every prompt, padding included.
        padding: Side on which prompts are padded, `right` or `left`.
        system_prompt: Stands in front of every prompt; empty for none.
    """

    tokenizer: Any
    model: Any
    tokens: int
    padding: str = "right"
    system_prompt: str = ""

    @classmethod
    def load(
        cls,
        source: str,
        tokens: int,
        padding: str = "right",
        system_prompt: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> LlmTextEncoder:
        """Load from a folder or a Hugging Face id.

        Args:
            source: Folder with the files of a language model and its tokenizer, or an id.
            tokens: T.
            padding: `right` or `left`.
            system_prompt: None for the text of `system_prompt.txt` in the folder (`system_prompt.py`), "" for none.
            revision: Branch, tag or commit of the id.
            dtype: fp16 (the default), bf16 or fp32. The CPU always gets fp32.
            device: Where the model runs.

        Raises:
            ToprovarError: transformers is not installed.
            CheckpointError: The source cannot be reached or read, lacks weights or the system prompt, or its tokenizer has no
                padding token.
        """
        import torch

        prompt = read_system_prompt(source) if system_prompt is None else system_prompt
        wanted = torch.float32 if torch.device(device).type == "cpu" else dtype or torch.float16
        tokenizer, model = read_pretrained("AutoModel", "language model", source, revision, wanted)
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"{source}: its tokenizer has no padding token; pass the model that HART was released with")
        return cls(tokenizer, model.to(device).eval().requires_grad_(False), tokens, padding, prompt)

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of prompts.

        Args:
            prompts: B texts, at least one.

        Returns:
            Features `[B, T, channels]` fp32 on the model's device, those of the padding included; and the number of tokens
            that are no padding, `[B]` int64.

        Raises:
            PromptError: `prompts` is empty.
        """
        import torch

        if not prompts:
            raise PromptError("no prompts to encode; pass at least one")
        options = {"max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        ids = self.tokenizer(list(prompts), padding="max_length", padding_side=self.padding, **options)["input_ids"]
        mask, dropped = ids != self.tokenizer.pad_token_id, 0
        lengths = mask.sum(dim=-1)
        if self.system_prompt:
            system = self.tokenizer([self.system_prompt], **options)["input_ids"].expand(len(prompts), -1)
            dropped = system.shape[1]
            ids, mask = torch.cat([system, ids], dim=1), torch.cat([torch.ones_like(system, dtype=torch.bool), mask], dim=1)
        device = self.model.device
        with torch.no_grad():
            hidden = self.model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        return hidden[:, dropped:].float(), lengths.to(device)

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Features, lengths and which prompts lost their end; see `encode`."""
        features, lengths = self.encode(prompts)
        # one token beyond the limit is enough to know
        tokens = self.tokenizer(list(prompts), max_length=self.tokens + 1, truncation=True)["input_ids"]
        return TextFeatures(features, lengths, tuple(len(ids) > self.tokens for ids in tokens))
