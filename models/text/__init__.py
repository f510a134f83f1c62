"""Text encoders behind one small interface: prompts in, features, lengths and a note of what was cut out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class TextFeatures(NamedTuple):
    """Features of B prompts."""

    features: Tensor
    """`[B, T, Ct]` fp32, zero behind each prompt's length."""
    lengths: Tensor
    """`[B]` int64, at least 1."""
    cut: tuple[bool, ...]
    """Whether each prompt was longer than the encoder takes and lost its end."""


class TextEncoder(Protocol):
    """What every stage asks of a text encoder."""

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode at least one prompt."""
        ...
