"""Shape and sampling of HART, the part of a profile that is this family's own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .errors import ProfileError
from .vq import VqTransformer, ranked_codes

MLP_MULTIPLE = 256
EARLY_SCALES = 7
PADDINGS = ("right", "left")


@dataclass(frozen=True, slots=True, kw_only=True)
class HartConfig(VqTransformer):
    """Shape of a HART transformer.

    Attributes:
        depth: Number of blocks L.
        width: Channels C.
        heads: Attention heads H; the head width is C / H.
        text_channels: Width of the text features.
        text_tokens: Text tokens T, padding included; they are the first of the sequence.
        text_padding: Side on which the text is padded.
        vocabulary: Codes V.
        latent_channels: Width d of a code.
        mlp_ratio: The hidden width of the MLP is 2/3 of this times C, rounded up to a multiple of 256.
        norm_eps: Of every RMS norm.
        diffusion_width: Channels of the residual diffusion head.
        diffusion_depth: Its blocks.
        diffusion_steps: Its sampling steps.
        patch_nums: Side of the square grid of every scale, coarse to fine.
    """

    depth: int
    width: int
    heads: int
    text_channels: int
    text_tokens: int = 300
    text_padding: str = "right"
    vocabulary: int = 4096
    latent_channels: int = 32
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    diffusion_width: int = 1024
    diffusion_depth: int = 6
    diffusion_steps: int = 8
    patch_nums: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", tuple(self.patch_nums))
        counts = ("depth", "width", "heads", "text_channels", "text_tokens", "vocabulary", "latent_channels")
        for name in (*counts, "diffusion_width", "diffusion_depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ProfileError(f"width {self.width} must be heads {self.heads} x a head width divisible by 4")
        if not isinstance(self.diffusion_steps, int) or not 2 <= self.diffusion_steps <= 1000:
            raise ProfileError(f"diffusion_steps must be a whole number from 2 to 1000, got {self.diffusion_steps!r}")
        if self.text_padding not in PADDINGS:
            raise ProfileError(f"text_padding must be 'right' or 'left', got {self.text_padding!r}")
        grids = self.patch_nums
        if len(grids) < 2 or grids[0] != 1 or any(a >= b for a, b in pairwise(grids)):
            raise ProfileError(f"patch_nums must rise from 1 in two or more scales, got {list(grids)}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def unconditional(self) -> tuple[str, int] | None:
        """Unconditional rows are zeros."""
        return None

    def layer_flops(self, tokens: int, keys: int, text_tokens: int) -> int:
        """Of one layer and row: self-attention to `keys` and the text, and MLP; a multiply-add counts as two."""
        # the one key of scale 0 is the last token of the text, which runs there
        tokens, keys = (self.text_tokens if keys == 1 else tokens), keys + self.text_tokens - 1
        return tokens * (2 * self.width * (4 * self.width + 3 * self.hidden) + 4 * self.width * keys)

    def emit_flops(self, tokens: int, sampled: int) -> int:
        """Of one row: `tokens` enter the stream, `sampled` leave it through the head, at the last scale with a residual."""
        plain = 2 * self.width * (sampled * self.vocabulary + tokens * self.latent_channels)
        return plain + (sampled * self.residual_flops if tokens == self.patch_nums[-1] ** 2 else 0)

    @property
    def residual_flops(self) -> int:
        """Of the diffusion head, for one token and row."""
        width, channels = self.diffusion_width, self.latent_channels
        step = 5 * self.diffusion_depth * width**2 + 2 * width**2 + 3 * channels * width
        return 2 * (self.diffusion_steps * step + self.width * width)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What a user may want to know beside depth and width."""
        head = f"{self.diffusion_steps} steps, {self.diffusion_depth} blocks of {self.diffusion_width} channels"
        return (("codes", str(self.vocabulary)), ("text tokens", str(self.text_tokens)), ("diffusion head", head))

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio * 2 / 3 + MLP_MULTIPLE - 1) // MLP_MULTIPLE * MLP_MULTIPLE


@dataclass(frozen=True, slots=True, kw_only=True)
class HartSampling:
    """How codes are drawn.

    Attributes:
        cfg: Guidance strength at full ramp: logits are (1 + t) conditional - t unconditional, t from 0 up to nearly `cfg`;
            0 means no unconditional rows.
        top_k: Likeliest codes kept at the first seven scales, and after them.
        top_p: After that the likeliest codes are kept whose probability reaches this; 0 keeps all.
        more_smooth: Add up codes softly, with weights that grow sharper from scale to scale, instead of one code.
    """

    cfg: float = 4.5
    top_k: tuple[int, int] = (600, 300)
    top_p: float = 0.0
    more_smooth: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_k", tuple(self.top_k))
        if not isinstance(self.cfg, (int, float)) or not self.cfg >= 0:
            raise ProfileError(f"cfg must be one number >= 0, which rises from scale to scale by itself, got {self.cfg!r}")
        if len(self.top_k) != 2 or any(not isinstance(k, int) or k < 1 for k in self.top_k):
            raise ProfileError(f"top_k must be two whole numbers >= 1, got {list(self.top_k)}")
        if not 0 <= self.top_p <= 1:
            raise ProfileError(f"top_p must be in [0, 1], got {self.top_p!r}")

    @property
    def controls(self) -> tuple[str, ...]:
        """Numbers that every scale has of its own."""
        return ("cfg",)

    @property
    def guided(self) -> bool:
        """Whether unconditional rows exist at all."""
        return self.cfg != 0

    @property
    def guides_logits(self) -> bool:
        """Whether guidance mixes the logits; the diffusion head is guided apart."""
        return True

    def top_k_of(self, scale: int) -> int:
        """Likeliest codes kept at a scale."""
        return self.top_k[0] if scale < EARLY_SCALES else self.top_k[1]

    def per_scale(self, name: str, scales: int) -> tuple[float, ...]:
        """`cfg` as the factor 1 + t of every scale."""
        assert name in self.controls
        return tuple(1 + self.cfg * ramp(scale, scales) for scale in range(scales))

    def ranked_codes(self, config: HartConfig) -> int:
        """Most codes that are put in order to draw one; 0 where none are."""
        return max(ranked_codes(config.vocabulary, top_k, self.top_p) for top_k in self.top_k)


def ramp(scale: int, scales: int) -> float:
    """Share of the way from scale 0 to the last one; the last scale itself has that of the one before, as released."""
    return min(scale, scales - 2) / (scales - 1)
