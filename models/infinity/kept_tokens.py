"""The kept tokens of a scale, in the order and with the tables that each layer needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...plugins.token_select import select_with_slots
from ..select import gather_rope
from ..state import Rope


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tokens of a layer.

    Attributes:
        index: `[R, n]`, ascending.
        rope: Their rotary table.
        slots: `[R, N]` int32: each token's place among them, or -1.
    """

    index: Tensor
    rope: Rope | None
    slots: Tensor


class KeptTokens:
    """The kept tokens of a scale by how many a layer keeps: ordered once a number, though every layer asks.

    Args:
        kept: `[R, n]`, best first.
        count: Tokens N of the scale.
        rope: Of all of them.
    """

    def __init__(self, kept: Tensor, count: int, rope: Rope | None) -> None:
        self.kept, self._rope, self._found = kept, rope, dict[int, Chosen]()
        rows, most = kept.shape
        order = torch.arange(most, dtype=torch.float32, device=kept.device).expand(rows, -1)
        self._ranks = torch.full((rows, count), float(most), device=kept.device).scatter(1, kept, order)

    def of(self, n: int) -> Chosen:
        """The n best."""
        if n not in self._found:
            index, slots = select_with_slots(self._ranks, n)
            self._found[n] = Chosen(index, gather_rope(self._rope, index), slots)
        return self._found[n]
