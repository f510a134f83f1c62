"""What is HART's own in a scale: the text as the first tokens, soft codes, and the residuals of a diffusion head.

The condition is `sos` `[R, T, C]`, the text; `head` `[R, 2, C]`; and `positions` `[R, T]`. Scale 0 runs the text, whose keys
come first in `k.L`, and its last token draws the image's first.

The noise is Gumbel noise, V numbers a token; where codes are mixed softly (`more_smooth`), `smooth_noise` is as much again.
At the last scale the diffusion head takes `diffusion_noise` `[B, N, steps, d]`, which is normal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...profiles.hart import HartSampling, ramp
from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan
from ..guidance import guide, mix
from ..select import gather_tokens, scatter_tokens
from ..state import Attended, Branch, Past, Rope, Shape, State
from ..step import ScaleStep
from ..vq.quantizer import Quantizer, TokensOf, phi_index
from ..vq.sampling import draw, soft_codes, truncate
from .blocks import Block
from .embedding import sinusoid
from .rope import frequencies, grid_positions, image_rope, text_rope
from .transformer import Hart


class HartStep(ScaleStep):
    """A scale of a schedule, bound to the weights of transformer and quantiser."""

    BRANCHES = ("attention", "mlp")
    grid: Tensor
    frequencies: Tensor
    level: Tensor
    timesteps: Tensor

    def __init__(
        self, model: Hart, quantizer: Quantizer, profile: ModelProfile, plan: ScalePlan, observe: bool = False
    ) -> None:
        """Bind; the weights are shared, never copied."""
        super().__init__(profile, plan, model.head.weight, observe)
        assert isinstance(profile.sampling, HartSampling)
        self.model, self.quantizer, self.sampling = model, quantizer, profile.sampling
        self.final = plan.scale == len(profile.sizes) - 1
        self.tokens_of = TokensOf(profile.sizes[-1], plan.size, model.head.weight)
        tables = {
            "grid": grid_positions(plan.size, profile.sizes[-1]),
            "frequencies": frequencies(model.config.head_width // (2 if plan.scale == 0 else 4)),
            "level": sinusoid(plan.scale),
            **({"timesteps": model.diffloss.timesteps()} if self.final else {}),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(model.head.weight.device), persistent=False)

    def input_names(self) -> tuple[str, ...]:
        """Names of the state this scale reads, in a fixed order."""
        smooth = ("smooth_noise",) if self.sampling.more_smooth else ()
        return (*super().input_names(), *smooth, *(("diffusion_noise",) if self.final else ()))

    def condition_names(self) -> tuple[str, ...]:
        return "head", "positions"

    def input_shape(self, name: str) -> Shape:
        config, count = self.model.config, self.plan.count
        kind, _, layer = name.partition(".")
        if kind in ("k", "v"):
            text = config.text_tokens - 1 if int(layer) in self.plan.begun else 0
            return ("R", config.heads, self.plan.past[int(layer)] + text, config.head_width)
        own: dict[str, Shape] = {
            "sos": ("R", config.text_tokens, config.width),
            "head": ("R", 2, config.width),
            "positions": ("R", config.text_tokens),
            "noise": ("B", count, config.vocabulary),
            "smooth_noise": ("B", count, config.vocabulary),
            "diffusion_noise": ("B", count, config.diffusion_steps, config.latent_channels),
        }
        return own.get(kind) or super().input_shape(name)

    @property
    def logit_channels(self) -> int:
        return self.model.config.vocabulary

    def blocks(self) -> Iterable[Block]:
        return self.model.layers()

    def embed(self, state: Mapping[str, Tensor]) -> Tensor:
        plan, model = self.plan, self.model
        level: Tensor = model.lvl_embed(self.level)
        if plan.scale == 0:
            return state["sos"] + level
        x = model.word_embed(self.tokens_of(state["summed"]).to(level.dtype)) + level
        return torch.cat([x, x]) if plan.guidance else x

    def positions(self, state: Mapping[str, Tensor]) -> Rope:
        if self.plan.scale == 0:
            return text_rope(state["positions"], self.frequencies)
        return image_rope(self.grid, state["positions"][:, -1:], self.frequencies)

    def own_tokens(self, x: Tensor, axis: int = 1) -> Tensor:
        # the text's last token is the image's first
        return x.narrow(axis, x.shape[axis] - 1, 1) if self.plan.scale == 0 else x

    def run_block(
        self,
        layer: int,
        block: Block,
        x: Tensor,
        rope: Rope | None,
        past: Past,
        reads_entropy: bool,
        state: Mapping[str, Tensor],
    ) -> Attended:
        return block(x, rope, past, reads_entropy)  # type: ignore[no-any-return]

    def run_attention(
        self,
        layer: int,
        block: Block,
        x: Tensor,
        rope: Rope | None,
        past: Past,
        reads_entropy: bool,
        state: Mapping[str, Tensor],
    ) -> Attended:
        assert rope is not None
        return block.attention_branch(x, rope, past, reads_entropy)

    def other_branches(self, layer: int, block: Block, state: Mapping[str, Tensor]) -> tuple[Branch, ...]:
        return (("mlp", block.mlp_branch),)

    def emit(self, x: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> None:
        """Draw the codes from the given noise and add what they stand for; a token that left the scale has the code 0."""
        plan, hidden, batch = self.plan, self.own_tokens(x), state["noise"].shape[0]
        index, scales = None if kept is None else kept[:batch], len(self.profile.sizes)
        logits = self.model.logits(hidden, state["head"]).float()
        mixed = guide(plan, logits, state, kept, out)
        allowed = truncate(mixed, self.sampling.top_k_of(plan.scale), self.sampling.top_p)
        codes = self._codes(allowed, hidden, state, index, out)
        if self.observe:
            out["observed.logits_before_guidance"], out["observed.logits"] = logits, mixed
        if index is not None:
            codes = scatter_tokens(codes.new_zeros(batch, plan.count, codes.shape[-1]), index, codes)
        # the last scale is added as it is
        which = None if self.final else phi_index(plan.scale, scales)
        added = self.quantizer.residual(codes, plan.size, self.profile.sizes[-1], which)
        out["summed"] = added if plan.scale == 0 else state["summed"] + added

    def _codes(self, allowed: Tensor, hidden: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> Tensor:
        """Logits `[B, n, V]` and stream `[R, n, C]` of the tokens that run, all or those `kept` -> codes `[B, n, d]` fp32."""

        def noise(name: str) -> Tensor:
            return state[name].flatten(2) if kept is None else gather_tokens(state[name].flatten(2), kept)

        index = draw(allowed, noise("noise"))
        codes = drawn = self.quantizer.codes(index)
        if self.sampling.more_smooth:
            ratio = ramp(self.plan.scale, len(self.profile.sizes))
            codes = soft_codes(allowed, noise("smooth_noise"), self.quantizer.embedding.weight.float(), ratio)
        if self.final:
            codes = codes + self._residual(hidden, drawn, noise("diffusion_noise"), state)
        if self.observe:
            out["observed.index"], out["observed.codes"] = index, codes
        return codes

    def _residual(self, hidden: Tensor, drawn: Tensor, noise: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What the diffusion head adds, given the stream and the codes drawn, even where they are mixed: `[B, n, d]` fp32."""
        # a reused difference guides the logits alone: the diffusion head has none
        guided = self.plan.guidance
        head, guidance = self.model.diffloss, (lambda rows: mix(rows, state)) if guided else None
        condition = self.model.residual_condition(hidden, torch.cat([drawn, drawn]) if guided else drawn)
        return head.sample(condition, noise.unflatten(-1, (len(head.steps), -1)), self.timesteps, guidance)
