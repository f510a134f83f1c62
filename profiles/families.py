"""Families of models: which dataclasses make up a profile of each, and what every stage may ask of them.

A stage never tests for a family. It asks the profile's parts through the protocols below, and code through `models.family`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .geometry import Size
from .hart import HartConfig, HartSampling
from .infinity import Sampling, TransformerConfig, VaeConfig
from .var import VarConfig, VarSampling
from .vq import VqConfig


class TransformerPart(Protocol):
    """Shape of a transformer, as far as the stages know it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def text_channels(self) -> int:
        """Width of the text features."""
        ...

    @property
    def text_tokens(self) -> int | None:
        """Text tokens of every prompt, padding included; None where prompts have lengths of their own."""
        ...

    @property
    def unconditional(self) -> tuple[str, int] | None:
        """The tensor of a bundle that holds the features of unconditional rows, and the first row; None where they are 0."""
        ...

    @property
    def latent_channels(self) -> int:
        """Channels of a code and of the latent."""
        ...

    @property
    def token_side(self) -> int:
        """Latent positions along each side of a token."""
        ...

    @property
    def one_geometry(self) -> bool:
        """Whether aspect ratio and pixel budget cannot be chosen."""
        ...

    def sizes(self, aspect_ratio: float, pixel_budget: str) -> tuple[Size, ...]:
        """Token grids (h, w), coarse to fine."""
        ...

    def check_vae(self, vae: Any) -> None:
        """Refuse a VAE of other codes with a ProfileError."""
        ...

    def layer_flops(self, tokens: int, keys: int, text_tokens: int) -> int:
        """Of one layer and row; a multiply-add counts as two."""
        ...

    def emit_flops(self, tokens: int, sampled: int) -> int:
        """Of one row outside the layers."""
        ...

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Names and values for `toprovar inspect`."""
        ...


class VaePart(Protocol):
    """Shape of a VAE, as far as the stages know it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def latent_channels(self) -> int: ...
    @property
    def stride(self) -> int:
        """Image pixels a latent position."""
        ...


class SamplingPart(Protocol):
    """How tokens are drawn, as far as the stages know it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def controls(self) -> tuple[str, ...]:
        """Numbers that each scale is given at run time; `cfg` among them is the factor of the conditional rows."""
        ...

    @property
    def guided(self) -> bool:
        """Whether unconditional rows exist at all."""
        ...

    @property
    def guides_logits(self) -> bool:
        """Whether guidance mixes the logits, so that a later scale can reuse their difference."""
        ...

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """One of the controls, a number a scale."""
        ...

    def ranked_codes(self, config: Any) -> int:
        """Most codes that are put in order to draw one, with the transformer's shape; 0 where none are."""
        ...


@dataclass(frozen=True, slots=True)
class FamilyParts:
    """The dataclasses of a family's profile."""

    transformer: type[Any]
    vae: type[Any]
    sampling: type[Any]


FAMILIES = {
    "infinity": FamilyParts(TransformerConfig, VaeConfig, Sampling),
    "var": FamilyParts(VarConfig, VqConfig, VarSampling),
    "hart": FamilyParts(HartConfig, VqConfig, HartSampling),
}
