"""Guidance of a scale's rows: by its own unconditional rows, or by the difference that an earlier scale left.

Guidance is u + cfg (c - u) = c + (cfg - 1) (c - u), of conditional rows c and unconditional ones u.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..profiles.plan import ScalePlan
from .select import enlarged_tokens
from .state import State


def mix(rows: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """cfg * conditional + (1 - cfg) * unconditional: `[2 B, ...]` -> `[B, ...]`."""
    batch = state["noise"].shape[0]
    return state["cfg"] * rows[:batch] + (1 - state["cfg"]) * rows[batch:]


def guide(
    plan: ScalePlan,
    logits: Tensor,
    state: Mapping[str, Tensor],
    kept: Tensor | None,
    out: State,
    temperature: Tensor | None = None,
) -> Tensor:
    """Logits of all rows to those that tokens are drawn from.

    The difference is kept as it is before temperature and cfg, so that a later scale applies its own.

    Args:
        plan: Of the scale.
        logits: `[R, n, V]` fp32, before temperature.
        state: Before the scale.
        kept: Tokens `[R, n]` that are drawn; None for all.
        out: Gets the difference `[B, V, h, w]` where a later scale reads it.
        temperature: `[1]`, or None for 1.

    Returns:
        `[B, n, V]`.
    """
    batch = state["noise"].shape[0]
    if plan.writes_difference:
        difference = logits[:batch] - logits[batch:]
        out["difference"] = difference.transpose(1, 2).unflatten(-1, plan.size)
    warmed = logits if temperature is None else logits * (1 / temperature)
    if plan.guidance:
        return mix(warmed, state)
    if plan.difference_from is None:
        return warmed
    difference = enlarged_tokens(state["difference"], plan.size, None if kept is None else kept[:batch])
    if temperature is not None:
        difference = difference * (1 / temperature)
    return warmed + (state["cfg"] - 1) * difference
