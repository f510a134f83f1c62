"""Shape and sampling of VAR, the class-conditional family: fixed square token grids, a vocabulary of codes, no text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .errors import ProfileError
from .vq import VqTransformer, ranked_codes

HEAD_WIDTH = 64
MLP_MULTIPLE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class VarConfig(VqTransformer):
    """Shape of a VAR transformer.

    Attributes:
        depth: Number of blocks L; the released models have `depth` heads of 64 channels.
        patch_nums: Side of each square token grid, coarse to fine.
        width: Channels C; 64 a head where it is not given.
        heads: Attention heads H; `depth` where it is not given.
        classes: Number of classes; one more row of the embedding stands for none.
        vocabulary: Codes V of the VQVAE.
        latent_channels: Width d of a code.
        shared_modulation: One modulation for all blocks (d36) instead of one a block.
        mlp_ratio: Hidden width of the MLP over C.
    """

    depth: int
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    width: int = 0
    heads: int = 0
    classes: int = 1000
    vocabulary: int = 4096
    latent_channels: int = 32
    shared_modulation: bool = False
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", tuple(self.patch_nums))
        object.__setattr__(self, "heads", self.heads or self.depth)
        object.__setattr__(self, "width", self.width or HEAD_WIDTH * self.heads)
        for name in ("depth", "width", "heads", "classes", "vocabulary", "latent_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.width % self.heads:
            raise ProfileError(f"width {self.width} must be divisible by heads {self.heads}")
        grids = self.patch_nums
        if len(grids) < 2 or grids[0] != 1 or any(a >= b for a, b in pairwise(grids)):
            raise ProfileError(f"patch_nums must rise from 1 in two or more scales, got {list(grids)}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def text_channels(self) -> int:
        """Width of a class's embedding: to the stages a class is a text of one token."""
        return self.width

    @property
    def text_tokens(self) -> int | None:
        """A class is one token."""
        return 1

    @property
    def unconditional(self) -> tuple[str, int] | None:
        """Where a bundle keeps the features of unconditional rows, and the first of them."""
        return "transformer.class_emb.weight", -1

    def layer_flops(self, tokens: int, keys: int, text_tokens: int) -> int:
        """Of one layer and row: self-attention to `keys` and MLP; a multiply-add counts as two."""
        hidden = round(self.width * self.mlp_ratio / MLP_MULTIPLE) * MLP_MULTIPLE
        return tokens * (2 * self.width * (4 * self.width + 2 * hidden) + 4 * self.width * keys)

    def emit_flops(self, tokens: int, sampled: int) -> int:
        """Of one row: `tokens` enter the stream, `sampled` leave it through the head."""
        return 2 * self.width * (sampled * self.vocabulary + tokens * self.latent_channels)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a user may want to know beside depth and width."""
        return (("codes, classes", f"{self.vocabulary}, {self.classes}"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class VarSampling:
    """How tokens are drawn.

    Attributes:
        cfg: Guidance strength: 1 + cfg at the last scale, falling linearly to none at the first; 0 has no unconditional rows.
        top_k: Only so many of the likeliest codes may be drawn; 0 is all.
        top_p: Then the least likely go whose probabilities sum to at most 1 - top_p; 0 keeps them.
        more_smooth: Mix codes by a soft, noisy choice instead of taking one: smoother images, for show only.
    """

    cfg: float = 4.0
    top_k: int = 900
    top_p: float = 0.95
    more_smooth: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cfg, (int, float)) or not self.cfg >= 0:
            raise ProfileError(f"cfg must be one number >= 0, which rises from scale to scale by itself, got {self.cfg!r}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ProfileError(f"top_k must be a whole number >= 0, got {self.top_k!r}")
        if not 0 <= self.top_p <= 1:
            raise ProfileError(f"top_p must be in [0, 1], got {self.top_p!r}")

    @property
    def controls(self) -> tuple[str, ...]:
        """Numbers that each scale is given at run time."""
        return ("cfg",)

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """Factor of the conditional logits at each scale, 1 + cfg * s / (S - 1); that of the others is 1 minus it."""
        assert name == "cfg", name
        return tuple(1 + self.cfg * scale / (scales - 1) for scale in range(scales))

    @property
    def guided(self) -> bool:
        """Whether unconditional rows exist at all."""
        return self.cfg != 0

    @property
    def guides_logits(self) -> bool:
        """Whether guidance mixes the logits."""
        return True

    def ranked_codes(self, config: VarConfig) -> int:
        """Most codes that are put in order to draw one; 0 where none are."""
        return ranked_codes(config.vocabulary, self.top_k, self.top_p)
