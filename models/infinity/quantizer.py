"""Multi-scale binary spherical quantisation: bits <-> codes, and the running sum that the next scale sees.

A bit is one channel of a latent position, a code is (2 bit - 1) / sqrt(d). Generation shrinks and enlarges with a bilinear
filter (no antialias); tokenisation of an image shrinks with 'area'. Both are as released, and they differ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...profiles.geometry import Size
from ..resize import resize


def latent_size(size: Size, patchify: bool) -> Size:
    """Latent grid of a token grid."""
    return (size[0] * 2, size[1] * 2) if patchify else size


def bits_to_code(bits: Tensor, size: Size, patchify: bool) -> Tensor:
    """Token bits (0 or 1, float) `[B, N, d or 4 d]` -> code `[B, d, H, W]` on the latent grid of this scale."""
    signs: Tensor = (bits * 2 - 1).transpose(1, 2).unflatten(-1, tuple(size))
    if patchify:
        signs = F.pixel_shuffle(signs, 2)
    code: Tensor = signs * signs.shape[1] ** -0.5
    return code


def tokens_of(summed: Tensor, size: Size, patchify: bool) -> Tensor:
    """Running sum `[B, d, H, W]` -> input tokens of a scale `[B, N, d or 4 d]`, row-major."""
    x = resize(summed, latent_size(size, patchify))
    if patchify:
        x = F.pixel_unshuffle(x, 2)
    return x.flatten(2).transpose(1, 2)


def bit_probability(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probability of bit = 1 after top-k and top-p.

    Args:
        logits: `[..., 2 d]`, entry 2j is bit 0 and 2j + 1 bit 1 of channel j.
        top_k: 1 keeps the likelier value only; anything larger keeps both.
        top_p: The smaller side goes iff its probability is at most 1 - top_p.

    Returns:
        `[..., d]`, exactly 0 or 1 where a side was dropped.
    """
    zero, one = logits.unflatten(-1, (-1, 2)).unbind(-1)
    p = torch.sigmoid(one - zero)
    threshold = 1.0 - top_p if top_k != 1 else 0.5
    p = torch.where(p <= threshold, 0.0, p)
    return torch.where(1.0 - p <= threshold, 1.0, p)


def tokenize(latent: Tensor, sizes: tuple[Size, ...], patchify: bool = False) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Residual quantisation of a latent, coarse to fine.

    Args:
        latent: `[B, d, H, W]`, the encoder's output.
        sizes: Token grids; the last one's latent grid is (H, W).
        patchify: A token is 2 x 2 latent positions.

    Returns:
        Bits of each scale `[B, N, d]` (0 or 1, float); the sum of the codes `[B, d, H, W]`; and, for every scale but the
        first, the sum so far shrunk to it with 'area', `[B, d, h, w]`.
    """
    grids = [latent_size(size, patchify) for size in sizes]
    residual, summed = latent, torch.zeros_like(latent)
    bits, inputs = [], []
    for index, grid in enumerate(grids):
        small = F.interpolate(residual, size=grid, mode="area") if index < len(grids) - 1 else residual
        signs = (F.normalize(small, dim=1) > 0).to(latent.dtype)
        code = resize((signs * 2 - 1) * signs.shape[1] ** -0.5, grids[-1])
        residual, summed = residual - code, summed + code
        tokens = F.pixel_unshuffle(signs, 2) if patchify else signs
        bits.append(tokens.flatten(2).transpose(1, 2))
        if index + 1 < len(grids):
            inputs.append(F.interpolate(summed, size=grids[index + 1], mode="area"))
    return bits, summed, inputs
