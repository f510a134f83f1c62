"""Which tokens run, and moving them out of and back into a scale."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..plugins import token_select as rows
from ..plugins.reused_tokens import enlarge
from ..profiles.geometry import Size
from .resize import resize
from .state import Rope


def select_tokens(
    score: str, count: int, size: Size, batch: int, entropy: Tensor | None, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Indices of the `count` best tokens of a scale, best first: `[B, count]` int64.

    Args:
        score: `entropy` takes the lowest attention entropy, `random` a fixed permutation.
        count: Tokens to keep.
        size: (h, w) of the scale.
        batch: B.
        entropy: `[B, 1, h', w']` map of an earlier scale, in nats; enlarged to `size`.
        seed: Of the permutation.
        device: Of the permutation.
    """
    if score == "random":
        return _permutation(size[0] * size[1], seed, torch.device(device))[:count].expand(batch, -1)
    assert entropy is not None, "the plan says which scale's entropy is read"
    return resize(entropy, size).flatten(1).topk(count, dim=-1, largest=False).indices


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, device: torch.device) -> Tensor:
    """A fixed order; kept on its device, since a captured graph takes nothing from the host."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)


def farthest_tokens(x: Tensor, count: int) -> Tensor:
    """Indices of the `count` tokens of each row farthest from the row's mean token, ascending: `[R, N, C]` -> `[R, count]`."""
    tokens = x.float()
    distance = (tokens - tokens.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    # ascending order keeps memory access ordered
    return distance.topk(count, dim=-1).indices.sort(dim=-1).values


def gather_tokens(x: Tensor, index: Tensor | None) -> Tensor:
    """`[R, N, C]`, `[R, n]` -> `[R, n, C]`; None takes all."""
    if index is not None and x.is_cuda:
        return rows.gather_rows(x, index)
    return x if index is None else x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def scatter_tokens(x: Tensor, index: Tensor, part: Tensor) -> Tensor:
    """`x` with the tokens at `index` replaced by `part`: `[R, N, C]`, `[R, n]`, `[R, n, C]` -> `[R, N, C]`."""
    if x.is_cuda:
        return rows.scatter_rows(x, index, part)
    return x.scatter(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]), part)


def tokens_of_map(grid: Tensor) -> Tensor:
    """`[R, C, h, w]` -> `[R, h * w, C]`; a map of the state is a view of tokens, which this gives back."""
    return grid.flatten(2).transpose(1, 2)


def enlarged_tokens(grid: Tensor, size: Size, index: Tensor | None, onto: Tensor | None = None) -> Tensor:
    """Tokens that a scale takes over from an earlier one, enlarged bilinearly: `[R, n, C]`.

    Args:
        grid: `[R, C, h', w']` map of the earlier scale.
        size: (h, w) of this one.
        index: `[R, n]`, which tokens; None for all.
        onto: `[R, n, C]` they are added to, or None.
    """
    if grid.is_cuda:
        return enlarge(tokens_of_map(grid), (grid.shape[-2], grid.shape[-1]), size, index, onto)
    found = gather_tokens(tokens_of_map(resize(grid, size)), index)
    return found if onto is None else onto + found


def gather_rope(rope: Rope | None, index: Tensor | None) -> Rope | None:
    """Rotary table of all tokens, if any -> that of each row's own tokens `[R, n]`; None takes all."""
    if index is None or rope is None:
        return rope
    cos, sin = rope
    if cos.ndim == 4:
        cos, sin = (gather_tokens(table.squeeze(1), index) for table in rope)
        return cos.unsqueeze(1), sin.unsqueeze(1)
    return cos[index].unsqueeze(1), sin[index].unsqueeze(1)
