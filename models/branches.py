"""Layers that run branch by branch: each on tokens chosen for it, the others taking an earlier scale's output (FastVAR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..plugins.branch_tokens import add_restored, token_distance
from ..plugins.token_select import select_with_slots, slots_of
from .reused import Restoring
from .select import farthest_tokens, scatter_tokens, tokens_of_map
from .state import State


@dataclass(frozen=True, slots=True)
class BranchTokens:
    """The tokens that run through a branch.

    Attributes:
        index: `[R, n]`, ascending.
        slots: `[R, N]` int32: each token's place among them, or -1; None where it has not been asked for.
    """

    index: Tensor
    slots: Tensor | None = None


class Branching(Restoring):
    """The part of `ScaleStep` that chooses a branch's tokens and joins its output to the stream."""

    observe: bool
    enlarge: nn.Module

    def _as_map(self, tokens: Tensor) -> Tensor:
        """`[R, N, C]` -> `[R, C, h, w]`."""
        raise NotImplementedError

    def _branch_tokens(self, branch: str, layer: int, x: Tensor, kept: Tensor | None, out: State) -> BranchTokens | None:
        """The tokens of a branch; None where all run. `kept` `[R, n]` are the scale's, best first, None where it has none."""
        if layer not in self.plan.branch_layers:
            return None
        count = self.plan.kept[layer]
        chosen = self._farthest(x, count) if kept is None else BranchTokens(kept[:, :count].sort(dim=-1).values)
        if self.observe:
            out[f"observed.kept_{branch}.{layer}"] = chosen.index
        return chosen

    def _farthest(self, x: Tensor, count: int) -> BranchTokens:
        """Of a stream `[R, N, C]` the tokens farthest from the row's mean token."""
        if self._uses_kernels(x):
            return BranchTokens(*select_with_slots(token_distance(x, self._mean(x)), count, largest=True))
        return BranchTokens(farthest_tokens(x, count))

    def _gate(self, branch: str, layer: int, rows: int) -> Tensor | None:
        """`[R, C]` of a branch that comes before its gate; None for one that comes after it."""
        return None

    def _mean(self, x: Tensor) -> Tensor | None:
        """The mean token `[R, C]` of a stream, where it was kept."""
        return None

    def _keep_mean(self, stream: Tensor, mean: Tensor) -> None:
        """The mean token of a stream, which the kernel that writes it also leaves."""

    def _joined(
        self,
        branch: str,
        layer: int,
        x: Tensor,
        y: Tensor,
        chosen: BranchTokens | None,
        state: Mapping[str, Tensor],
        out: State,
    ) -> Tensor:
        """The stream `[R, N, C]` plus a branch: where a token did not run, its output at the cache scale, enlarged."""
        name, writes = f"delta_{branch}.{layer}", layer in self.plan.writes_branches
        gate = self._gate(branch, layer, x.shape[0])  # not len(), which an export takes for a constant
        if chosen is not None and not writes and self._uses_kernels(x):
            return self._add_restored(x, y, gate, chosen, state[name])
        if gate is not None:
            y = y * gate.unsqueeze(1)
        if chosen is not None:
            y = scatter_tokens(tokens_of_map(self.enlarge(state[name])), chosen.index, y)
        if writes:
            out[name] = self._as_map(y)
        return x + y

    def _add_restored(self, x: Tensor, y: Tensor, gate: Tensor | None, chosen: BranchTokens, cached: Tensor) -> Tensor:
        """The same in one kernel. The gate is for y: the cached output is behind it."""
        slots = slots_of(chosen.index, x.shape[1]) if chosen.slots is None else chosen.slots
        size = cached.shape[-2], cached.shape[-1]
        joined, mean = add_restored(x, y, gate, slots, tokens_of_map(cached), size, self.plan.size)
        self._keep_mean(joined, mean)
        return joined
