"""The tiny model's word-level text encoder behind the common interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..tiny.text import WordTokenizer
from ..tiny.text_encoder import WordEncoder
from . import TextFeatures


class WordTextEncoder:
    """Tokenizer and encoder together."""

    def __init__(self, encoder: WordEncoder) -> None:
        self.encoder = encoder.eval()
        self.tokenizer = WordTokenizer(max_length=encoder.max_length)

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of the prompts, padded to the longest of them."""
        device = self.encoder.words.weight.device
        encoded = self.tokenizer.encode(list(prompts))
        features = self.encoder(torch.from_numpy(encoded.ids).to(device))
        lengths = torch.from_numpy(encoded.lengths).to(device)
        return TextFeatures(features, lengths, tuple(bool(cut) for cut in encoded.cut))
