"""Layers that only some tokens run, or none: what the others take over from an earlier scale."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..plugins.reused_tokens import put_back
from ..plugins.token_select import slots_of
from ..profiles.plan import ScalePlan
from .select import enlarged_tokens, gather_rope, gather_tokens, scatter_tokens, tokens_of_map
from .state import Rope


class Restoring:
    """The part of `ScaleStep` that gathers a layer's tokens and puts them back."""

    plan: ScalePlan

    def _uses_kernels(self, x: Tensor) -> bool:
        """Whether tokens are chosen and put back by kernels; exported and on a CPU, torch's own operators do it."""
        return x.is_cuda

    def _plus_reused(self, layer: int, x: Tensor, kept: Tensor | None, state: Mapping[str, Tensor]) -> Tensor:
        """The tokens that are there, `[R, n, C]`, plus a layer's update at an earlier scale, enlarged."""
        return enlarged_tokens(state[f"delta.{layer}"], self.plan.size, kept, x)

    def _of_layer(self, layer: int, kept: Tensor, rope: Rope | None) -> tuple[Tensor, Rope | None]:
        """Tokens `[R, n]` that run through a pruned layer, ascending, and their rotary table."""
        # ascending order keeps memory access ordered
        index = kept[:, : self.plan.kept[layer]].sort(dim=-1).values
        return index, gather_rope(rope, index)

    def _gathered(self, x: Tensor, index: Tensor) -> Tensor:
        """Those tokens of the stream."""
        return gather_tokens(x, index)

    def _put_back(self, layer: int, x: Tensor, index: Tensor, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The stream `[R, N, C]` after a layer that those at `index` ran; the others take its update of an earlier scale."""
        if layer not in self.plan.delta_layers:
            return scatter_tokens(x, index, y)
        if self._uses_kernels(x):
            return self._put_back_fused(layer, x, slots_of(index, x.shape[1]), y, state)
        return scatter_tokens(self._plus_reused(layer, x, None, state), index, y)

    def _put_back_fused(self, layer: int, x: Tensor, slots: Tensor, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The same in one kernel; `slots` `[R, N]` as of `slots_of`."""
        cached = state[f"delta.{layer}"]
        return put_back(x, y, slots, tokens_of_map(cached), (cached.shape[-2], cached.shape[-1]), self.plan.size)
