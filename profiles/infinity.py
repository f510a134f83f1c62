"""Shape and sampling of Infinity, the text-to-image family whose tokens are bits."""

from __future__ import annotations

from dataclasses import dataclass

from . import geometry
from .errors import ProfileError

BSQ_LEVELS_MAX = 15
MLP_MULTIPLE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of an Infinity transformer.

    Attributes:
        depth: Number of blocks L.
        width: Channels C.
        heads: Attention heads H; the head width is C / H.
        block_chunks: Groups the checkpoint stores the blocks in; divides `depth`.
        text_channels: Width of the text features.
        text_maxlen: Rows of the learned unconditional text.
        bits: Bits of one latent position d; with `patchify` a token carries 4 d.
        patchify: A token is 2 x 2 latent positions (Infinity-8B).
        mlp_ratio: Hidden width of the MLP over C.
        level_embed_every_chunk: Add the level embedding before every chunk, not only before block 0.
    """

    depth: int
    width: int
    heads: int
    block_chunks: int = 1
    text_channels: int
    text_maxlen: int = 512
    bits: int = 32
    patchify: bool = False
    mlp_ratio: float = 4.0
    level_embed_every_chunk: bool = False

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads", "block_chunks", "text_channels", "text_maxlen", "bits"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ProfileError(f"width {self.width} must be heads {self.heads} x a head width divisible by 4")
        if self.depth % self.block_chunks:
            raise ProfileError(f"depth {self.depth} must be divisible by block_chunks {self.block_chunks}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def token_bits(self) -> int:
        """Bits of one token: d, or 4 d where a token is 2 x 2 latent positions."""
        return self.bits * (4 if self.patchify else 1)

    @property
    def latent_channels(self) -> int:
        return self.bits

    @property
    def token_side(self) -> int:
        """Latent positions along each side of a token."""
        return 2 if self.patchify else 1

    @property
    def text_tokens(self) -> int | None:
        """Any number of text tokens may come."""
        return None

    @property
    def unconditional(self) -> tuple[str, int] | None:
        """Where a bundle keeps the features of unconditional rows, and the first of them."""
        return "transformer.cfg_uncond", 0

    @property
    def one_geometry(self) -> bool:
        return False

    def sizes(self, aspect_ratio: float, pixel_budget: str) -> tuple[geometry.Size, ...]:
        """Token grids (h, w), coarse to fine."""
        sizes = geometry.scale_sizes(aspect_ratio, pixel_budget)
        if len(sizes) > BSQ_LEVELS_MAX:
            raise ProfileError(f"{len(sizes)} scales; the level embedding has {BSQ_LEVELS_MAX} rows")
        return sizes

    def check_vae(self, vae: VaeConfig) -> None:
        """Refuse a VAE of other codes."""
        if vae.bits != self.bits:
            raise ProfileError(f"the VAE has {vae.bits} bits, the transformer {self.bits}")

    def layer_flops(self, tokens: int, keys: int, text_tokens: int) -> int:
        """Of one layer and row: self-attention to `keys`, cross-attention, MLP; a multiply-add counts as two."""
        hidden = round(self.width * self.mlp_ratio / MLP_MULTIPLE) * MLP_MULTIPLE
        linear = 2 * self.width * (4 * self.width + 2 * self.width + 2 * hidden)
        return tokens * (linear + 4 * self.width * keys + 4 * self.width * text_tokens)

    def emit_flops(self, tokens: int, sampled: int) -> int:
        """Of one row: `tokens` enter the stream, `sampled` leave it through the head."""
        return sampled * 2 * self.width * 2 * self.token_bits + tokens * 2 * self.width * self.token_bits

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a user may want to know beside depth and width."""
        return (("bits a token", str(self.token_bits)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """Shape of a BSQ-VAE: `stride` is 2 ** (len(channel_mult) - 1)."""

    bits: int = 32
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    res_blocks: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        if not self.channel_mult or any(not isinstance(m, int) or m < 1 for m in self.channel_mult):
            raise ProfileError(f"channel_mult must be whole numbers >= 1, got {self.channel_mult!r}")

    @property
    def latent_channels(self) -> int:
        return self.bits

    @property
    def stride(self) -> int:
        """Image pixels a latent position."""
        return int(2 ** (len(self.channel_mult) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        cfg: Guidance strength, one for all scales or one a scale; 1 everywhere means no unconditional rows.
        tau: Temperature of the bit logits, one for all scales or one a scale.
        top_k: Kept for the official interface; a bit has two values, so only 1 changes anything.
        top_p: The less likely value of a bit is dropped when its probability is at most 1 - top_p.
        cfg_insertion_layer: Where guidance mixes the rows: 0 = logits, -k = hidden states after block depth - k.
    """

    cfg: float | tuple[float, ...] = 4.0
    tau: float | tuple[float, ...] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    cfg_insertion_layer: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("cfg", "tau"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(float(v) for v in value))
        object.__setattr__(self, "cfg_insertion_layer", tuple(self.cfg_insertion_layer))
        if any(t <= 0 for t in self.per_scale("tau", 1)):
            raise ProfileError(f"tau must be > 0, got {self.tau!r}")
        if not 0 < self.top_p <= 1:
            raise ProfileError(f"top_p must be in (0, 1], got {self.top_p!r}")
        if any(entry > 0 for entry in self.cfg_insertion_layer):
            raise ProfileError(f"cfg_insertion_layer takes 0 and negative entries, got {self.cfg_insertion_layer}")

    @property
    def controls(self) -> tuple[str, ...]:
        """Numbers that each scale is given at run time."""
        return ("tau", "cfg")

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """`cfg` or `tau` as one number a scale; a list shorter than `scales` is an error."""
        value = getattr(self, name)
        if isinstance(value, (int, float)):
            return (float(value),) * scales
        if len(value) < scales:
            raise ProfileError(f"{name} lists {len(value)} values for {scales} scales")
        return tuple(value[:scales])

    @property
    def guided(self) -> bool:
        """Whether unconditional rows exist at all."""
        return any(c != 1 for c in (self.cfg if isinstance(self.cfg, tuple) else (self.cfg,)))

    @property
    def guides_logits(self) -> bool:
        """Whether guidance mixes the logits and nothing else."""
        return tuple(self.cfg_insertion_layer) == (0,)

    def ranked_codes(self, config: TransformerConfig) -> int:
        """None: bits are drawn, not codes."""
        return 0
