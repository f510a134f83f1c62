"""One scale as a pure function: state in, state out. The unit that calibration, export, CUDA graphs and tests all use.

Where a schedule drops guidance, the caller narrows the state to its conditional rows first (`narrow_rows`).
A schedule changes the function by rules (drop rows, skip layers, gather kept tokens, scatter), never by a second model: they
stand in `ScaleStep`, once. A family's subclass says how tokens enter, what a block takes, and how tokens are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..profiles.model import ModelProfile
from ..profiles.plan import ScalePlan
from .branches import Branching
from .resize import AreaResize, resize
from .select import gather_rope, gather_tokens, select_tokens
from .state import Attended, Branch, Past, Rope, Shape, State


class ScaleStep(nn.Module, Branching, ABC):
    """A scale of a schedule, bound to a model's weights.

    Args:
        profile: Geometry and sampling rules.
        plan: What runs at this scale.
        like: A weight of the model: tables get its device and dtype.
        observe: Also return `observed.*`: every layer's entropy and update norms, and what the tokens were drawn from.
    """

    BRANCHES: ClassVar[tuple[str, ...]] = ("attention", "cross", "mlp")
    """Branches of a layer, in order; the first is always the attention."""

    def __init__(self, profile: ModelProfile, plan: ScalePlan, like: Tensor, observe: bool = False) -> None:
        super().__init__()
        self.profile, self.plan, self.dtype, self.observe = profile, plan, like.dtype, observe
        self.enlarge: nn.Module = nn.Identity()
        if plan.branch_layers and plan.cache_scale is not None:
            self.enlarge = AreaResize(profile.sizes[plan.cache_scale], plan.size, like)

    @abstractmethod
    def condition_names(self) -> tuple[str, ...]:
        """Names of the condition's tensors that this scale reads, without `sos`."""

    @property
    @abstractmethod
    def logit_channels(self) -> int:
        """Logits V of a token."""

    @abstractmethod
    def blocks(self) -> Iterable[Any]:
        """The model's blocks in order."""

    @abstractmethod
    def embed(self, state: Mapping[str, Tensor]) -> Tensor:
        """Residual stream before block 0: `[R, N, C]`."""

    @abstractmethod
    def run_block(
        self, layer: int, block: Any, x: Tensor, rope: Rope | None, past: Past, reads_entropy: bool, state: Mapping[str, Tensor]
    ) -> Attended:
        """A whole block on the tokens given."""

    @abstractmethod
    def run_attention(
        self, layer: int, block: Any, x: Tensor, rope: Rope | None, past: Past, reads_entropy: bool, state: Mapping[str, Tensor]
    ) -> Attended:
        """The attention branch of a block on the tokens given, after its gate."""

    @abstractmethod
    def other_branches(self, layer: int, block: Any, state: Mapping[str, Tensor]) -> tuple[Branch, ...]:
        """The branches behind the attention by name, each from the tokens it runs on to its output after its gate."""

    @abstractmethod
    def emit(self, x: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> None:
        """Draw the tokens and put the new sum into `out` under `summed`.

        `x` `[R, n, C]` comes from behind the last block; `kept` `[R, n]` are its tokens where the others left, else None.
        """

    def positions(self, state: Mapping[str, Tensor]) -> Rope | None:
        """Rotary table of all tokens of the scale, where the family has one."""
        return None

    def own_tokens(self, x: Tensor, axis: int = 1) -> Tensor:
        """Tokens along an axis without those that a family has in front of the scale's own h * w."""
        return x

    def before_layer(self, layer: int, x: Tensor) -> Tensor:
        """What a family adds to the stream before a layer, whether it runs or not."""
        return x

    def after_layer(self, layer: int, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What a family does to the stream behind a layer, whether it ran or not."""
        return x

    @property
    def mixes(self) -> bool:
        """Whether guidance is applied at this scale."""
        return self.plan.guidance or self.plan.difference_from is not None

    @property
    def holds(self) -> bool:
        """Whether pruned tokens leave the scale altogether."""
        return self.plan.tokens is not None and self.plan.tokens.fill == "hold"

    def input_names(self) -> tuple[str, ...]:
        """Names of the state this scale reads, in a fixed order."""
        plan, controls = self.plan, self.profile.sampling.controls
        return (
            "sos" if plan.scale == 0 else "summed",
            *self.condition_names(),
            "noise",
            *(name for name in controls if name != "cfg" or self.mixes),
            *(f"{kind}.{layer}" for layer in plan.layers if plan.past[layer] for kind in "kv"),
            *(("entropy",) if plan.entropy_from is not None else ()),
            *(f"delta.{layer}" for layer in plan.delta_layers),
            *(f"delta_{branch}.{layer}" for layer in plan.branch_layers for branch in self.BRANCHES),
            *(("difference",) if plan.difference_from is not None else ()),
        )

    def input_shape(self, name: str) -> Shape:
        """Shape of one of `input_names()`."""
        kind, _, index = name.partition(".")
        plan, profile, config = self.plan, self.profile, self.profile.transformer
        if kind in profile.sampling.controls:
            return (1,)
        if kind == "summed":
            return ("B", config.latent_channels, *profile.latent_size)
        if kind in ("k", "v"):
            return ("R", config.heads, plan.past[int(index)], config.head_width)
        if kind in ("entropy", "difference"):
            source = plan.entropy_from if kind == "entropy" else plan.difference_from
            assert source is not None, name
            return ("B", 1 if kind == "entropy" else self.logit_channels, *profile.sizes[source])
        source = plan.update_sources[int(index)] if kind == "delta" else plan.cache_scale
        assert source is not None, name
        return ("R", config.width, *profile.sizes[source])

    def output_names(self) -> tuple[str, ...]:
        """Names of the state this scale replaces or adds, in a fixed order."""
        plan = self.plan
        return (
            "summed",
            *(() if plan.last else (f"{kind}.{layer}" for layer in plan.layers for kind in "kv")),
            *(("entropy",) if plan.writes_entropy else ()),
            *(f"delta.{layer}" for layer in plan.writes_delta),
            *(f"delta_{branch}.{layer}" for layer in plan.writes_branches for branch in self.BRANCHES),
            *(("difference",) if plan.writes_difference else ()),
        )

    def forward(self, state: Mapping[str, Tensor]) -> State:
        """Run the scale: `input_names()` in, `output_names()` out, and `observed.*` where asked."""
        plan, out = self.plan, State()
        x, rope = self.embed(state), self.positions(state)
        kept = self._select(state)
        if self.holds:
            x, rope = gather_tokens(x, kept), gather_rope(rope, kept)
        for layer, block in enumerate(self.blocks()):
            x = self.before_layer(layer, x)
            if plan.kept[layer]:
                by_branch = layer in plan.branch_layers or layer in plan.writes_branches
                run = self._layer_by_branch if by_branch else self._layer
                x = run(layer, block, x, rope, kept, state, out)
            elif layer in plan.delta_layers:
                x = self._plus_reused(layer, x, kept if self.holds else None, state)
            x = self.after_layer(layer, x, state)
        self.emit(x, state, kept if self.holds else None, out)
        # export names outputs by position
        return {name: out.pop(name) for name in self.output_names()} | out

    def _select(self, state: Mapping[str, Tensor]) -> Tensor | None:
        """Kept tokens `[R, n]`: best first, or ascending where they leave together; n is the most a pruned layer keeps.

        None where all run, or where each branch chooses its own.
        """
        plan = self.plan
        if plan.tokens is None or plan.tokens.score == "distance":
            return None
        most = max(n for n in plan.kept if n < plan.count)
        noise = state["noise"]
        kept = select_tokens(
            plan.tokens.score, most, plan.size, noise.shape[0], state.get("entropy"), seed=plan.scale, device=noise.device
        )
        if self.holds:
            kept = kept.sort(dim=-1).values
        return torch.cat([kept, kept]) if plan.guidance else kept

    def _layer(
        self, layer: int, block: Any, x: Tensor, rope: Rope | None, kept: Tensor | None, state: Mapping[str, Tensor], out: State
    ) -> Tensor:
        """One layer, on all tokens of x or on the kept ones only."""
        plan = self.plan
        pruned = kept is not None and not self.holds and plan.kept[layer] < plan.count
        index, table = self._of_layer(layer, kept, rope) if kept is not None and pruned else (None, rope)
        part = x if index is None else self._gathered(x, index)
        past, reads_entropy = self._attended(layer, state)
        y, k, v, entropy = self.run_block(layer, block, part, table, past, reads_entropy, state)
        self._record(layer, k, v, entropy, kept if self.holds else index, state, out)
        if self.observe:
            out[f"observed.update.{layer}"] = self.own_tokens((y - part).norm(dim=-1) / part.norm(dim=-1))
        if layer in plan.writes_delta:
            out[f"delta.{layer}"] = self._as_map(y - x)
        return y if index is None else self._put_back(layer, x, index, y, state)

    def _layer_by_branch(
        self, layer: int, block: Any, x: Tensor, rope: Rope | None, kept: Tensor | None, state: Mapping[str, Tensor], out: State
    ) -> Tensor:
        """One layer, branch by branch: each on tokens chosen for it, completed by its output at an earlier scale."""
        entering, (past, reads_entropy) = x, self._attended(layer, state)
        chosen = self._branch_tokens("attention", layer, x, kept, out)
        index = None if chosen is None else chosen.index
        part, table = gather_tokens(x, index), gather_rope(rope, index)
        y, k, v, entropy = self.run_attention(layer, block, part, table, past, reads_entropy, state)
        self._record(layer, k, v, entropy, index, state, out)
        x = self._joined("attention", layer, x, y, chosen, state, out)
        for name, branch in self.other_branches(layer, block, state):
            chosen = self._branch_tokens(name, layer, x, kept, out)
            y = branch(gather_tokens(x, None if chosen is None else chosen.index))
            x = self._joined(name, layer, x, y, chosen, state, out)
        if layer in self.plan.writes_delta:
            out[f"delta.{layer}"] = self._as_map(x - entering)
        if self.observe:
            out[f"observed.update.{layer}"] = self.own_tokens((x - entering).norm(dim=-1) / entering.norm(dim=-1))
        return x

    def _attended(self, layer: int, state: Mapping[str, Tensor]) -> tuple[Past, bool]:
        """Cached keys and values of a layer, and whether its entropy is read."""
        plan = self.plan
        past = (state[f"k.{layer}"], state[f"v.{layer}"]) if plan.past[layer] else None
        return past, self.observe or (plan.writes_entropy and layer == plan.entropy_layer)

    def _record(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        entropy: Tensor | None,
        index: Tensor | None,
        state: Mapping[str, Tensor],
        out: State,
    ) -> None:
        """Keep what attention leaves for later scales; `index` are the tokens that ran, None for all."""
        plan = self.plan
        if not plan.last:
            out[f"k.{layer}"], out[f"v.{layer}"] = k, v
        if entropy is None:
            return
        entropy = self.own_tokens(entropy, axis=2)
        if plan.writes_entropy and layer == plan.entropy_layer:
            out["entropy"] = self._entropy_map(entropy, index, state)
        if self.observe:
            out[f"observed.entropy.{layer}"] = entropy

    def _as_map(self, tokens: Tensor) -> Tensor:
        """`[R, N, C]` -> `[R, C, h, w]`."""
        found: Tensor = self.own_tokens(tokens).transpose(1, 2).unflatten(-1, self.plan.size)
        return found

    def _entropy_map(self, entropy: Tensor, index: Tensor | None, state: Mapping[str, Tensor]) -> Tensor:
        """`[R, H, n]` -> `[B, 1, h, w]`: mean over the heads of the conditional rows; pruned tokens keep the older map."""
        batch = state["noise"].shape[0]
        tokens: Tensor = entropy[:batch].mean(dim=1)
        if index is not None:
            tokens = resize(state["entropy"], self.plan.size).flatten(1).scatter(1, index[:batch], tokens)
        return tokens.reshape(batch, 1, *self.plan.size)
