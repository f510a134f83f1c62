"""The blocks of Infinity for a GPU: the same function as `blocks.Block`, with everything between two matrix products fused.

Keys and values live in one arena that is allocated once; a block writes its own straight into place, so nothing is ever
concatenated. `ScaleStep` decides what runs and never knows which blocks it calls; without a GPU the same code runs on the
definitions of the kernels, so that it is tested everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...plugins.residual_norm import residual_norm
from ...plugins.rotary_cache import rotary_cache
from ...plugins.skinny_linear import linear, partial_sums, summed
from ...plugins.text_attention import text_attention
from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan
from .. import step as base
from ..generate import Noise, run_scales
from ..layers import attend
from ..state import Rope, State
from .blocks import MAX_SCALE_MUL, Block
from .step import ScaleStep
from .transformer import Infinity
from .workspace import GAMMA1, GAMMA2, SCALE2, SHIFT2, Arena, Workspace


class FusedBlock:
    """A block's weights in the form the kernels take, and the block itself: arguments and results as of `Block`."""

    def __init__(self, block: Block, layer: int, workspace: Workspace) -> None:
        self.layer, self.workspace = layer, workspace
        attention, cross = block.sa, block.ca
        self.heads = attention.heads
        self.qkv, self.proj = attention.mat_qkv.weight, attention.proj
        self.qkv_bias = torch.cat([attention.q_bias, attention.zero_k_bias, attention.v_bias])
        self.factor = attention.scale_mul_1H11.float().clamp_max(MAX_SCALE_MUL).exp().flatten()
        self.cross_q, self.cross_proj = cross.mat_q, cross.proj
        self.cross_norm = (block.ca_norm.weight[None], block.ca_norm.bias[None])
        self.fc1, self.fc2 = block.ffn.fc1, block.ffn.fc2

    def __call__(
        self,
        x: Tensor,
        shared: Tensor,
        rope: Rope,
        text: tuple[Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """One block."""
        vectors = self._vectors(x)
        attended, k, v, entropy = self._attend(self.workspace.normed(self.layer, x), rope, past, with_entropy)
        x, normed = residual_norm(x, attended, vectors[:, GAMMA1], *self.cross_norm, one=False)
        assert normed is not None
        x, normed = residual_norm(x, self._cross(normed, text), None, vectors[:, SCALE2], vectors[:, SHIFT2])
        assert normed is not None
        return self.workspace.add(self.layer, x, self._mlp(normed)), k, v, entropy

    def attention_branch(
        self, x: Tensor, shared: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Self-attention of the tokens given, before its gate."""
        attended, k, v, entropy = self._attend(self.workspace.normed(self.layer, x), rope, past, with_entropy)
        return summed(attended, x), k, v, entropy

    def cross_branch(self, x: Tensor, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attention of the tokens given to the text."""
        _, normed = residual_norm(x, None, None, *self.cross_norm, one=False)
        assert normed is not None
        return summed(self._cross(normed, text), x)

    def mlp_branch(self, x: Tensor, shared: Tensor) -> Tensor:
        """The MLP of the tokens given, before its gate."""
        vectors = self._vectors(x)
        _, normed = residual_norm(x, None, None, vectors[:, SCALE2], vectors[:, SHIFT2])
        assert normed is not None
        return summed(self._mlp(normed), x)

    def _vectors(self, x: Tensor) -> Tensor:
        """`[R, 6, C]`: gamma1, gamma2, scale1, scale2, shift1, shift2."""
        return self.workspace.modulation[self.layer, : x.shape[0]]

    def _attend(
        self, normed: Tensor, rope: Rope, past: tuple[Tensor, Tensor] | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        rows, tokens, _ = normed.shape
        qkv = linear(normed, self.qkv, self.qkv_bias).view(rows, tokens, 3, self.heads, -1)
        older = past[0].shape[2] if past is not None else 0
        new, every = self.workspace.arena.place(self.layer, self.workspace.plan.scale, rows, older, tokens)
        q = rotary_cache(qkv, self.factor, *rope, new[0], new[1])
        k, v = every
        output, entropy = attend(q, k, v, 1.0, with_entropy)
        return _partial(self.proj, output.transpose(1, 2).flatten(2)), k, v, entropy

    def _cross(self, normed: Tensor, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        k, v, _ = text
        q = _partial(self.cross_q, normed).unflatten(-1, (self.heads, -1))
        output = text_attention(q, k, v, self.workspace.lengths[: len(normed)], q.shape[-1] ** -0.5)
        return _partial(self.cross_proj, output.flatten(2))

    def _mlp(self, normed: Tensor) -> Tensor:
        return _partial(self.fc2, linear(normed, self.fc1.weight, self.fc1.bias, gelu=True))


def _partial(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's result, as partial sums where `partial_sums` leaves such."""
    return partial_sums(x, layer.weight, layer.bias)


class FusedInfinity:
    """The model as one scale's `ScaleStep` sees it: the maps of `Infinity`, the blocks above."""

    def __init__(self, model: Infinity, blocks: Sequence[FusedBlock], workspace: Workspace, plan: ScalePlan) -> None:
        self.model, self.plan, self.workspace, self._blocks = model, plan, workspace, blocks
        self.pos_start, self.lvl_embed, self.word_embed = model.pos_start, model.lvl_embed, model.word_embed

    def blocks(self) -> Iterator[FusedBlock]:
        """The blocks in order; the scale begins here."""
        self.workspace.plan = self.plan
        return iter(self._blocks)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """As of `Infinity`."""
        return self.model.head(self.workspace.normed(len(self._blocks), x))  # type: ignore[no-any-return]


class FusedStep(ScaleStep):
    """A scale whose tokens are chosen, gathered and restored by kernels; its branches come before their gates."""

    @property
    def workspace(self) -> Workspace:
        """Of the blocks."""
        return cast(FusedInfinity, self.model).workspace

    def _of_layer(self, layer: int, kept: Tensor, rope: Rope | None) -> tuple[Tensor, Rope | None]:
        of = self.workspace.tokens_of(kept, self.plan.count, rope).of(self.plan.kept[layer])
        return of.index, of.rope

    def _gathered(self, x: Tensor, index: Tensor) -> Tensor:
        known = self.workspace.part(x, index.shape[1])
        return super()._gathered(x, index) if known is None else known

    def _put_back(self, layer: int, x: Tensor, index: Tensor, y: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if layer in self.plan.delta_layers:
            joined = self._put_back_fused(layer, x, self.workspace.slots(index.shape[1]), y, state)
        else:
            joined = super()._put_back(layer, x, index, y, state)
        self.workspace.keep_part(joined, y)
        return joined

    def _uses_kernels(self, x: Tensor) -> bool:
        # without a GPU their definitions
        return True

    def _mean(self, x: Tensor) -> Tensor | None:
        return self.workspace.mean(x)

    def _keep_mean(self, stream: Tensor, mean: Tensor) -> None:
        self.workspace.keep_mean(stream, mean)

    def _gate(self, branch: str, layer: int, rows: int) -> Tensor | None:
        # attention to the text has none
        place = {"attention": GAMMA1, "mlp": GAMMA2}.get(branch)
        return None if place is None else self.workspace.modulation[layer, :rows, place]


class FusedSteps:
    """All scales of a schedule on fused blocks, see `models.family.ImageSteps`.

    Args:
        model: Holds the weights, which are shared, never copied.
        profile: Geometry and sampling rules.
        plans: The scales that run.
        batch: Images B.
    """

    def __init__(self, model: Infinity, profile: ModelProfile, plans: Sequence[ScalePlan], batch: int) -> None:
        self.model = model
        self.arena = Arena(plans, batch, model.config.heads, model.config.head_width)
        self.workspace = Workspace(model, self.arena)
        blocks = [FusedBlock(block, layer, self.workspace) for layer, block in enumerate(model.blocks())]
        self.steps: Sequence[base.ScaleStep] = tuple(
            FusedStep(FusedInfinity(model, blocks, self.workspace, plan), profile, plan).eval()  # type: ignore[arg-type]
            for plan in plans
        )

    def begin(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale: features `[R, T, Ct]` and lengths `[R]` of all rows."""
        condition = self.model.condition(text, lengths)
        self.arena.allocate(self.model.pos_start)
        self.workspace.begin(condition)
        return condition.state()

    def run(self, text: Tensor, lengths: Tensor, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`."""
        summed = run_scales(self.steps, self.begin(text, lengths), noise)["summed"]
        self.arena.release()
        return summed

    def resume(self, text: Tensor, lengths: Tensor, state: State, noise: Noise) -> Tensor:
        """Summed codes `[B, d, H, W]`, from the state that earlier scales left."""
        begun = self.begin(text, lengths)
        self.arena.take(state)
        summed = run_scales(self.steps, {**begun, **state}, noise)["summed"]
        self.arena.release()
        return summed
