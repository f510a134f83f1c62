"""What is VAR's own in a scale: the condition of a class, positions learned a token, one code a token out of a codebook.

The condition is `sos` `[R, C]`, `head` `[R, 2, C]` and `six.L` `[R, 1, 6, C]`, the modulation of layer L. `noise` is Gumbel
noise, V numbers a token; where codes are mixed softly (`more_smooth`), `smooth_noise` is as much again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan
from ...profiles.var import VarSampling
from ..guidance import guide
from ..select import gather_tokens, scatter_tokens
from ..state import Attended, Branch, Past, Rope, Shape, State
from ..step import ScaleStep
from ..vq.quantizer import Quantizer, TokensOf, phi_index
from ..vq.sampling import draw, soft_codes, truncate
from .transformer import Block, Var


class VarStep(ScaleStep):
    """A scale of a schedule, bound to the weights of transformer and quantiser."""

    BRANCHES = ("attention", "mlp")

    def __init__(self, model: Var, quantizer: Quantizer, profile: ModelProfile, plan: ScalePlan, observe: bool = False) -> None:
        """Bind; the weights are shared, never copied."""
        super().__init__(profile, plan, model.pos_start, observe)
        assert isinstance(profile.sampling, VarSampling)
        self.model, self.quantizer, self.sampling = model, quantizer, profile.sampling
        self.tokens_of = TokensOf(profile.sizes[-1], plan.size, model.pos_start)

    def input_names(self) -> tuple[str, ...]:
        """Names of the state this scale reads, in a fixed order."""
        return (*super().input_names(), *(("smooth_noise",) if self.sampling.more_smooth else ()))

    def condition_names(self) -> tuple[str, ...]:
        return ("head", *(f"six.{layer}" for layer in self.plan.layers))

    def input_shape(self, name: str) -> Shape:
        config = self.model.config
        own: dict[str, Shape] = {
            "sos": ("R", config.width),
            "head": ("R", 2, config.width),
            "six": ("R", 1, 6, config.width),
            "noise": ("B", self.plan.count, config.vocabulary),
            "smooth_noise": ("B", self.plan.count, config.vocabulary),
        }
        return own.get(name.partition(".")[0]) or super().input_shape(name)

    @property
    def logit_channels(self) -> int:
        return self.model.config.vocabulary

    def blocks(self) -> Iterable[Block]:
        return self.model.layers()

    def embed(self, state: Mapping[str, Tensor]) -> Tensor:
        plan, model = self.plan, self.model
        place = model.lvl_embed.weight[plan.scale] + model.pos_1LC[:, plan.offset : plan.offset + plan.count]
        if plan.scale == 0:
            return state["sos"].unsqueeze(1) + model.pos_start + place
        x = model.word_embed(self.tokens_of(state["summed"]).to(model.pos_start.dtype)) + place
        return torch.cat([x, x]) if plan.guidance else x

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
        return block(x, state[f"six.{layer}"], past, reads_entropy)  # type: ignore[no-any-return]

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
        return block.attention_branch(x, state[f"six.{layer}"], past, reads_entropy)

    def other_branches(self, layer: int, block: Block, state: Mapping[str, Tensor]) -> tuple[Branch, ...]:
        return (("mlp", lambda x: block.mlp_branch(x, state[f"six.{layer}"])),)

    def emit(self, x: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> None:
        """Draw the codes from the given noise and add what they stand for; a token that left the scale has the code 0."""
        plan, batch, scales = self.plan, state["noise"].shape[0], len(self.profile.sizes)
        index = None if kept is None else kept[:batch]
        logits = self.model.logits(x, state["head"]).float()
        mixed = guide(plan, logits, state, kept, out)
        allowed = truncate(mixed, self.sampling.top_k, self.sampling.top_p)
        codes = self._codes(allowed, state, index, out)
        if self.observe:
            out["observed.logits_before_guidance"], out["observed.logits"] = logits, mixed
        if index is not None:
            codes = scatter_tokens(codes.new_zeros(batch, plan.count, codes.shape[-1]), index, codes)
        added = self.quantizer.residual(codes, plan.size, self.profile.sizes[-1], phi_index(plan.scale, scales))
        out["summed"] = added if plan.scale == 0 else state["summed"] + added

    def _codes(self, allowed: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> Tensor:
        """Logits `[B, n, V]` of the tokens that run, all or those `kept` -> codes `[B, n, d]` fp32."""

        def noise(name: str) -> Tensor:
            return state[name] if kept is None else gather_tokens(state[name], kept)

        drawn = draw(allowed, noise("noise"))
        codes = self.quantizer.codes(drawn)
        if self.sampling.more_smooth:
            ratio = self.plan.scale / (len(self.profile.sizes) - 1)
            codes = soft_codes(allowed, noise("smooth_noise"), self.quantizer.embedding.weight.float(), ratio)
        if self.observe:
            out["observed.index"], out["observed.codes"] = drawn, codes
        return codes
