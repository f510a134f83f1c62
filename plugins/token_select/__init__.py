"""`toprovar::select_tokens`, `gather_rows`, `scatter_rows`: which tokens run, and moving them out of and back into a scale.

Torch ops, so that torch.export keeps each as one node; the definition everywhere, Triton kernels on CUDA. They read nothing
back to the host, so CUDA graphs can capture them after one call outside (which compiles), and they have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..direct import direct
from . import reference

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDICES = (torch.int32, torch.int64)


def _kernels(x: Tensor) -> Any:
    """What computes where a tensor is."""
    if not x.is_cuda:
        return reference
    # imported when first called: a machine without a GPU need not have Triton
    from . import launch

    return launch


def _select(scores: Tensor, k: int, largest: bool) -> Tensor:
    return _kernels(scores).select(scores, k, largest)  # type: ignore[no-any-return]


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    return _kernels(x).gather_rows(x, indices)  # type: ignore[no-any-return]


def _scatter(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return _kernels(base).scatter_rows(base, indices, rows)  # type: ignore[no-any-return]


_select_op = torch.library.custom_op("toprovar::select_tokens", _select, mutates_args=())
_gather_op = torch.library.custom_op("toprovar::gather_rows", _gather, mutates_args=())
_scatter_op = torch.library.custom_op("toprovar::scatter_rows", _scatter, mutates_args=())


@_select_op.register_fake
def _(scores: Tensor, k: int, largest: bool) -> Tensor:
    return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


@_gather_op.register_fake
def _(x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], indices.shape[1], x.shape[2]))


@_scatter_op.register_fake
def _(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return base.new_empty(base.shape)


def select_tokens(scores: Tensor, k: int, largest: bool = False) -> Tensor:
    """Indices of the k smallest (or largest) scores of each row, ascending by index; ties go to the lower index.

    Args:
        scores: `[R, N]`, fp16, bf16, fp32 or fp64. -0.0 equals 0.0; NaN counts as the greatest value.
        k: 1 to N.
        largest: Take the largest instead of the smallest.

    Returns:
        `[R, k]` int64, in 0..N-1, strictly ascending along a row.

    Raises:
        ValueError: `scores` is not a float matrix, or k is outside 1..N.
    """
    if scores.ndim != 2 or scores.dtype not in _FLOATS:
        raise ValueError(
            f"scores: got {_shown(scores)}, expected [R, N] in fp16, bf16, fp32 or fp64; flatten each map to one row of floats"
        )
    n = scores.shape[1]
    # torch.export cannot see that N // 2 <= N: a count computed from a symbolic size is taken at its word
    if isinstance(k, int) and not 1 <= k <= n:
        raise ValueError(f"k: got {k} for rows of {n} scores, expected 1 to {n}; keep between one token and all of them")
    if direct():
        return _select(scores, k, largest)
    result: Tensor = torch.ops.toprovar.select_tokens(scores, k, largest)
    return result


def select_with_slots(scores: Tensor, k: int, largest: bool = False) -> tuple[Tensor, Tensor]:
    """As `select_tokens`, and where each token stands among the chosen ones; no torch op, for captured graphs.

    Args:
        scores: `[R, N]`, fp16, bf16, fp32 or fp64.
        k: 1 to N.
        largest: Take the largest instead of the smallest.

    Returns:
        `[R, k]` int64, strictly ascending along a row, and `[R, N]` int32, -1 where a token was not chosen.
    """
    if not scores.is_cuda:
        index = reference.select(scores, k, largest)
        return index, reference.slots(index, scores.shape[1])
    from . import launch

    return launch.select_with_slots(scores, k, largest)


def slots_of(indices: Tensor, n: int) -> Tensor:
    """Where each of n tokens stands among chosen ones `[R, k]`, distinct in a row: `[R, n]` int32, -1 where it is not."""
    return reference.slots(indices, n)


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of `x` at `indices`.

    Args:
        x: `[B, N, C]`, any dtype; on CUDA without a copy where the last dimension is contiguous, whatever the other strides.
        indices: `[B, k]` int32 or int64, in 0..N-1. An index outside raises on the CPU and gives a row of zeros on CUDA.

    Returns:
        `[B, k, C]`, contiguous, in the dtype of `x`.

    Raises:
        ValueError: The shapes, the devices or the dtype of `indices` do not fit.
    """
    _check("x", x, indices)
    if direct():
        return _gather(x, indices)
    result: Tensor = torch.ops.toprovar.gather_rows(x, indices)
    return result


def scatter_rows(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """`base` with `rows` put over it at `indices`; `base` stays as it is.

    Args:
        base: `[B, N, C]`, any dtype.
        indices: `[B, k]` int32 or int64, in 0..N-1 and distinct in a row: of two equal ones, which wins is not defined. An
            index outside raises on the CPU and writes nothing on CUDA.
        rows: `[B, k, C]`, dtype and device of `base`.

    Returns:
        `[B, N, C]`, new and contiguous, in the dtype of `base`.

    Raises:
        ValueError: The shapes, the devices or the dtypes do not fit.
    """
    _check("base", base, indices)
    expected = [*indices.shape, base.shape[2]]
    if [*rows.shape] != expected or rows.dtype != base.dtype or rows.device != base.device:
        raise ValueError(
            f"rows: got {_shown(rows)}, expected {base.dtype} {expected} on {base.device}; give one row an index, and convert "
            "with .to(base)"
        )
    if direct():
        return _scatter(base, indices, rows)
    result: Tensor = torch.ops.toprovar.scatter_rows(base, indices, rows)
    return result


def _check(name: str, x: Tensor, indices: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{name}: got {_shown(x)}, expected [B, N, C]; add the missing dimension with .unsqueeze")
    if indices.ndim != 2 or indices.shape[0] != x.shape[0] or indices.dtype not in _INDICES or indices.device != x.device:
        raise ValueError(
            f"indices: got {_shown(indices)}, expected int32 or int64 [{x.shape[0]}, k] on {x.device}; use the result of "
            "select_tokens on the same batch, or .expand and .to it"
        )


def _shown(x: Tensor) -> str:
    return f"{x.dtype} {[*x.shape]} on {x.device}"
