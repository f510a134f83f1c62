"""What the fused blocks of one image share: keys and values, modulation, and what one kernel leaves for the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...plugins.residual_norm import residual_norm
from ...profiles.plan import ScalePlan
from ..state import Rope
from .kept_tokens import KeptTokens
from .transformer import Condition, Infinity

GAMMA1, GAMMA2, SCALE1, SCALE2, SHIFT1, SHIFT2 = range(6)


class Arena:
    """Keys and values of all layers, one behind the other along the token axis: `[2, R, H, T, D]`.

    Those of the last scale are read by their own layer only. They are written in front of the layer's older ones, over the
    end of the layer before, which nobody reads any more: they cost no memory, and attention does not mind the order of keys.
    Where the plans end before the image does, there is no last scale.
    """

    def __init__(self, plans: Sequence[ScalePlan], batch: int, heads: int, width: int) -> None:
        end = plans[-1]
        self.last = end.scale if end.last else None
        rows = batch * max(plan.rows for plan in plans)
        self.starts: list[int] = []
        # the first layer has none before it
        place = max(end.kept) if end.last else 0
        for past, kept in zip(end.past, end.kept, strict=True):
            self.starts.append(place)
            place += past + (0 if end.last else kept)
        self.shape = (2, rows, heads, place, width)

    def allocate(self, like: Tensor) -> None:
        """Take the memory, in the dtype and on the device of a tensor."""
        self.memory = torch.empty(self.shape, dtype=like.dtype, device=like.device)

    def release(self) -> None:
        """Leave the memory to the decoder: inside a captured graph the allocator gives it out again."""
        del self.memory

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Copy the keys and values of earlier scales to where the layers look for them."""
        for layer, start in enumerate(self.starts):
            for side, name in enumerate("kv"):
                older = state.get(f"{name}.{layer}")
                if older is not None:
                    self.memory[side, : older.shape[0], :, start : start + older.shape[2]] = older[: self.shape[1]]

    def place(self, layer: int, scale: int, rows: int, past: int, count: int) -> tuple[Tensor, Tensor]:
        """Where `count` new keys and values go, and all that are attended to: each `[2, R, H, ., D]`, views."""
        start = self.starts[layer]
        memory = self.memory[:, :rows]
        if scale == self.last:
            return memory[..., start - count : start, :], memory[..., start - count : start + past, :]
        return memory[..., start + past : start + past + count, :], memory[..., start : start + past + count, :]


class Workspace:
    """What the blocks of one image share; made anew by `begin`, so nothing passes from one image to the next."""

    plan: ScalePlan
    modulation: Tensor
    head: Tensor
    lengths: Tensor

    def __init__(self, model: Infinity, arena: Arena) -> None:
        self.arena = arena
        self.gates = torch.cat([block.ada_gss for block in model.blocks()]).unsqueeze(1)  # [L, 1, 1, 6, C]
        self._ready: tuple[Tensor, Tensor | None, int] | None = None
        self._mean: tuple[Tensor, Tensor] | None = None
        self._part: tuple[Tensor, Tensor] | None = None
        self._tokens: KeptTokens | None = None

    def begin(self, condition: Condition) -> None:
        """Modulation of all layers at once, and the text's length: what depends on the text alone."""
        self.modulation = (self.gates + condition.shared).squeeze(2)  # [L, R, 6, C]
        self.head = condition.head
        self.lengths = (condition.mask == 0).sum(dim=(1, 2, 3))
        self._ready = self._mean = self._part = self._tokens = None

    def tokens_of(self, kept: Tensor, count: int, rope: Rope | None) -> KeptTokens:
        """The kept tokens of a scale; the same as long as it is the same choice."""
        if self._tokens is None or self._tokens.kept is not kept:
            self._tokens = KeptTokens(kept, count, rope)
        return self._tokens

    def slots(self, n: int) -> Tensor:
        """Places among the n best of the scale's kept tokens."""
        assert self._tokens is not None, "a layer's tokens are asked for before they are put back"
        return self._tokens.of(n).slots

    def keep_part(self, stream: Tensor, part: Tensor) -> None:
        """Remember the tokens that a layer put back into a stream: the next one may run the same."""
        self._part = stream, part

    def part(self, x: Tensor, n: int) -> Tensor | None:
        """The n best tokens of a stream, where they are those that the layer before put back into it."""
        known, self._part = self._part, None
        return known[1] if known is not None and known[0] is x and known[1].shape[1] == n else None

    def keep_mean(self, stream: Tensor, mean: Tensor) -> None:
        """Remember the mean token of a stream `[R, N, C]`."""
        self._mean = stream, mean

    def mean(self, x: Tensor) -> Tensor | None:
        """The mean token `[R, C]` fp32 of a stream, where the kernel that wrote it left it."""
        known, self._mean = self._mean, None
        return known[1] if known is not None and known[0] is x else None

    def add(self, layer: int, x: Tensor, update: Tensor) -> Tensor:
        """End of a layer: the MLP's gated update, and at once the norm that the next layer begins with."""
        rows = x.shape[0]
        gate = self.modulation[layer, :rows, GAMMA2]
        following = self._next(layer)
        if following is None:
            stream, _ = residual_norm(x, update, gate)
            return stream
        scale, shift = self._entry(following, rows)
        stream, normed = residual_norm(x, update, gate, scale, shift)
        self._ready = (stream, normed, following)
        return stream

    def normed(self, layer: int, x: Tensor) -> Tensor:
        """The norm that a layer, or the head as layer L, begins with."""
        ready, self._ready = self._ready, None
        # another tensor: tokens were gathered, rows mixed, or a level added in between
        if ready is not None and ready[0] is x and ready[1] is not None and ready[2] == layer:
            return ready[1]
        scale, shift = self._entry(layer, x.shape[0])
        _, normed = residual_norm(x, None, None, scale, shift)
        assert normed is not None
        return normed

    def _entry(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        if layer == len(self.gates):
            return self.head[:rows, 0], self.head[:rows, 1]
        return self.modulation[layer, :rows, SCALE1], self.modulation[layer, :rows, SHIFT1]

    def _next(self, layer: int) -> int | None:
        """The layer that reads this one's result as it is, the head as layer L; None where tokens are gathered first."""
        plan, tokens = self.plan, self.plan.tokens
        following = next((other for other in plan.layers if other > layer), len(self.gates))
        if tokens is None or tokens.fill == "hold":
            return following
        if tokens.fill == "branch":
            return None
        # the head reads all tokens
        after = plan.kept[following] if following < len(self.gates) else plan.count
        return following if after == plan.kept[layer] else None
