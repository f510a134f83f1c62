"""Prompts to features at run time: the bundled word encoder needs ONNX Runtime only, others transformers and torch."""

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


OWN = {
    "words": "this bundle holds its text encoder",
    "random": "this bundle was built with random weights and draws from random text features",
}
"""Kinds of encoders that nothing from outside can stand in for, and why."""
KEPT_CALLS = 256
"""Whose features stay: images of one prompt with other seeds do not run the encoder again."""


class TextSource:
    """Encodes prompts for one engine; loads its encoder once, on the engine's device."""

    def __init__(self, engine: Engine, source: str | None = None) -> None:
        self.engine = engine
        self.described: dict[str, Any] = engine.manifest.text_encoder
        self.source = source
        if source and self.described.get("kind") in OWN:
            raise ToprovarError(f"--text-encoder {source}: {OWN[self.described['kind']]}; leave it out")
        self._encoder: Any = None
        self._known: dict[tuple[str, ...], Features] = {}

    def encode(self, prompts: Sequence[str]) -> Features:
        """Features of at least one prompt; the same prompts together are encoded once."""
        key = tuple(prompts)
        # the newest stand last
        found = self._known.pop(key, None) or self._encode(prompts)
        self._known[key] = found
        if len(self._known) > KEPT_CALLS:
            del self._known[next(iter(self._known))]
        return found

    def _encode(self, prompts: Sequence[str]) -> Features:
        kind = self.described.get("kind")
        if kind == "words":
            return self._words(prompts)
        if kind == "classes":
            return self._classes(prompts)
        if self._encoder is None:
            self._encoder = self._torch_encoder(str(kind))
        features = self._encoder.encode_prompts(prompts)
        return Features(features.features.float().cpu().numpy(), features.lengths.cpu().numpy(), features.cut)

    def _words(self, prompts: Sequence[str]) -> Features:
        from ..models.tiny.text import WordTokenizer

        encoded = WordTokenizer(max_length=self.engine.profile.text.max_length).encode(list(prompts))
        return Features(self.engine.words(encoded.ids), encoded.lengths, tuple(bool(cut) for cut in encoded.cut))

    def _classes(self, prompts: Sequence[str]) -> Features:
        from ..models.text.classes import ClassNames

        embedding = self.engine.tensor("transformer.class_emb.weight")
        count, given = len(embedding) - 1, self.source
        names = ClassNames.read(count, given) if given else ClassNames(count, self.described["names"])
        numbers = names.numbers(prompts)
        return Features(embedding[numbers][:, None], np.ones(len(numbers), np.int64), (False,) * len(numbers))

    def _place(self) -> tuple[Any, str]:
        """Type and device of an encoder in torch: bf16 beside the engine on its GPU, else the encoder's own on the CPU."""
        import torch

        device = self.engine.text_device
        return (None, device) if device == "cpu" else (torch.bfloat16, device)

    def _torch_encoder(self, kind: str) -> Any:
        profile = self.engine.profile
        if kind == "random":
            from ..models.text.random_features import RandomTextEncoder

            config, seed = profile.transformer, self.described["seed"]
            return RandomTextEncoder(config.text_channels, profile.text.max_length, seed, config.text_tokens)
        if kind not in ("t5", "llm"):
            raise ToprovarError(f"text encoder {kind!r} is not known to this version; update toprovar")
        source = self.source or self.described["source"]
        revision = self.described.get("revision") if self.source is None else None
        dtype, device = self._place()
        self.engine.tell(f"loading the text encoder {source}")
        if kind == "t5":
            from ..models.text.t5 import T5TextEncoder

            return T5TextEncoder.load(source, revision, dtype, device)
        from ..models.text.llm import LlmTextEncoder

        tokens, padding = profile.text.max_length, self.described["padding"]
        return LlmTextEncoder.load(source, tokens, padding, revision=revision, dtype=dtype, device=device)
