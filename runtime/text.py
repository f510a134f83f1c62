"""Prompts to features at run time: the bundled word encoder needs ONNX Runtime only, T5 needs transformers and torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..profiles.errors import ToprovarError
from .loop import Engine


class Features(NamedTuple):
    """Features `[B, T, Ct]` fp32, lengths `[B]`, and which prompts lost their end."""

    text: NDArray[np.float32]
    lengths: NDArray[np.int64]
    cut: tuple[bool, ...]


class TextSource:
    """Encodes prompts for one engine; loads its encoder once."""

    def __init__(self, engine: Engine, source: str | None = None) -> None:
        self.engine = engine
        self.described: dict[str, Any] = engine.manifest.text_encoder
        self.source = source
        self._encoder: Any = None

    def encode(self, prompts: Sequence[str]) -> Features:
        """Features of at least one prompt."""
        kind = self.described.get("kind")
        if kind == "words":
            return self._words(prompts)
        if self._encoder is None:
            self._encoder = self._torch_encoder(str(kind))
        features = self._encoder.encode_prompts(prompts)
        return Features(features.features.float().cpu().numpy(), features.lengths.cpu().numpy(), features.cut)

    def _words(self, prompts: Sequence[str]) -> Features:
        from ..models.tiny.text import WordTokenizer

        encoded = WordTokenizer(max_length=self.engine.profile.text.max_length).encode(list(prompts))
        return Features(self.engine.words(encoded.ids), encoded.lengths, tuple(bool(cut) for cut in encoded.cut))

    def _torch_encoder(self, kind: str) -> Any:
        profile = self.engine.profile
        if kind == "t5":
            from ..models.text.t5 import T5TextEncoder

            source = self.source or self.described["source"]
            return T5TextEncoder.load(source, self.described.get("revision") if self.source is None else None)
        if kind == "random":
            from ..models.text.random_features import RandomTextEncoder

            return RandomTextEncoder(profile.transformer.text_channels, profile.text.max_length, self.described["seed"])
        raise ToprovarError(f"text encoder {kind!r} is not known to this version; update toprovar")
