"""Shape of the multi-scale VQVAE that VAR and HART share."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ProfileError
from .geometry import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class VqConfig:
    """A VQVAE whose codes are summed over scales; `stride` is 2 ** (len(channel_mult) - 1).

    Attributes:
        vocabulary: Codes V.
        latent_channels: Width d of a code and of the latent.
        base_channels: Channels of the decoder at full resolution.
        channel_mult: Their factor at each level.
        res_blocks: Residual blocks a level of the encoder; the decoder has one more.
    """

    vocabulary: int = 4096
    latent_channels: int = 32
    base_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        for name in ("vocabulary", "latent_channels", "base_channels", "res_blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ProfileError(f"{name} must be a whole number >= 1, got {value!r}")
        if not self.channel_mult or any(not isinstance(m, int) or m < 1 for m in self.channel_mult):
            raise ProfileError(f"channel_mult must be whole numbers >= 1, got {self.channel_mult!r}")

    @property
    def stride(self) -> int:
        """Image pixels a latent position."""
        return int(2 ** (len(self.channel_mult) - 1))


def ranked_codes(vocabulary: int, top_k: int, top_p: float) -> int:
    """Codes that are put in order to draw one, 0 where all may be drawn; `top_k` and `top_p` are 0 where they are not used."""
    if not (top_p or 0 < top_k < vocabulary):
        return 0
    return min(top_k, vocabulary) or vocabulary


class VqTransformer:
    """What a transformer over such a VQVAE's codes answers alike, whatever its family."""

    __slots__ = ()

    vocabulary: int
    latent_channels: int
    patch_nums: tuple[int, ...]

    @property
    def token_side(self) -> int:
        return 1

    @property
    def one_geometry(self) -> bool:
        return True

    def sizes(self, aspect_ratio: float, pixel_budget: str) -> tuple[Size, ...]:
        """Token grids (h, w), coarse to fine; always the same."""
        return tuple((n, n) for n in self.patch_nums)

    def check_vae(self, vae: VqConfig) -> None:
        """Refuse a VQVAE of other codes."""
        theirs, ours = (vae.vocabulary, vae.latent_channels), (self.vocabulary, self.latent_channels)
        if theirs != ours:
            raise ProfileError("the VQVAE has {} codes of {} channels, the transformer {} of {}".format(*theirs, *ours))
