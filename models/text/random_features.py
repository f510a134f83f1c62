"""Features that depend on nothing but the prompt's bytes: stands in for a text encoder when weights are random."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from . import TextFeatures


class RandomTextEncoder:
    """One normal vector a word, from a hash of the prompt and the seed; for latency work, where content does not matter."""

    def __init__(self, channels: int, max_length: int, seed: int, tokens: int | None = None) -> None:
        """Features of `channels` numbers; with `tokens` every prompt has as many, its padding as random as its words."""
        self.channels, self.max_length, self.seed, self.tokens = channels, max_length, seed, tokens

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """`[B, T, channels]`, T one more than the most words, or `tokens`."""
        rows, lengths, cut = [], [], []
        for prompt in prompts:
            words = len(prompt.split()) + 1
            key = hashlib.sha256(f"{self.seed}:{prompt}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
            lengths.append(min(words, self.max_length))
            rows.append(torch.randn(self.tokens or lengths[-1], self.channels, generator=generator))
            cut.append(words > self.max_length)
        return TextFeatures(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(lengths), tuple(cut))
