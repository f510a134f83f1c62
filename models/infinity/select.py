"""Which tokens run, and moving them out of and back into a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from ...profiles.geometry import Size
from .quantizer import resize
from .rope import Rope


def select_tokens(score: str, count: int, size: Size, batch: int, entropy: Tensor | None, seed: int) -> Tensor:
    """Indices of the `count` best tokens of a scale, best first: `[B, count]` int64.

    Args:
        score: `entropy` takes the lowest attention entropy, `random` a fixed permutation.
        count: Tokens to keep.
        size: (h, w) of the scale.
        batch: B.
        entropy: `[B, 1, h', w']` map of an earlier scale, in nats; enlarged to `size`.
        seed: Of the permutation.
    """
    if score == "random":
        order = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(seed))
        return order[:count].to(entropy.device if entropy is not None else "cpu").expand(batch, -1)
    assert entropy is not None, "the plan says which scale's entropy is read"
    return resize(entropy, size).flatten(1).topk(count, dim=-1, largest=False).indices


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """`[R, N, C]`, `[R, n]` -> `[R, n, C]`."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def scatter_tokens(x: Tensor, index: Tensor, part: Tensor) -> Tensor:
    """`x` with the tokens at `index` replaced by `part`: `[R, N, C]`, `[R, n]`, `[R, n, C]` -> `[R, N, C]`."""
    return x.scatter(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]), part)


def gather_rope(rope: Rope, index: Tensor) -> Rope:
    """Rotary table of all tokens -> that of each row's own tokens `[R, n]`."""
    cos, sin = rope
    return cos[index].unsqueeze(1), sin[index].unsqueeze(1)
