"""What is Infinity's own in a scale: text attended to in every layer, rotary positions, a token of independent bits.

The condition is `sos`, `shared`, `head` and `mask`, see `transformer.Condition`, and `ca_k.L`, `ca_v.L` `[R, H, T, D]`, the
cross-attention keys and values of layer L. `noise` is uniform in [0, 1), a number a bit; `tau` is the temperature of the bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...profiles.geometry import rope_reference
from ...profiles.infinity import Sampling, TransformerConfig
from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan
from .. import step as base
from ..guidance import guide, mix
from ..resize import resize
from ..select import gather_tokens, scatter_tokens
from ..state import Attended, Branch, Past, Rope, Shape, State, narrow_rows
from .blocks import Block
from .quantizer import bit_probability, bits_to_code, latent_size, tokens_of
from .rope import rope_table
from .transformer import Infinity

__all__ = ["ScaleStep", "State", "narrow_rows"]


class ScaleStep(base.ScaleStep):
    """A scale of a schedule, bound to the model's weights."""

    rope: Tensor

    def __init__(self, model: Infinity, profile: ModelProfile, plan: ScalePlan, observe: bool = False) -> None:
        """Bind; the weights are shared, never copied."""
        super().__init__(profile, plan, model.pos_start, observe)
        config, sampling = profile.transformer, profile.sampling
        assert isinstance(config, TransformerConfig)
        assert isinstance(sampling, Sampling)
        self.model, self.config, self.sampling = model, config, sampling
        table = rope_table(plan.size, rope_reference(profile.aspect_ratio), config.head_width)
        self.register_buffer("rope", table.to(model.pos_start.device), persistent=False)
        self.mixed_layers = tuple(config.depth + entry for entry in sampling.cfg_insertion_layer if entry < 0)
        self.mixes_logits = 0 in sampling.cfg_insertion_layer
        self.chunk = config.depth // config.block_chunks if config.level_embed_every_chunk else config.depth

    @property
    def mixes(self) -> bool:
        return super().mixes and (self.mixes_logits or bool(self.mixed_layers))

    @property
    def logit_channels(self) -> int:
        return 2 * self.config.token_bits

    def condition_names(self) -> tuple[str, ...]:
        return ("shared", "head", "mask", *(f"ca_{kind}.{layer}" for layer in self.plan.layers for kind in "kv"))

    def input_shape(self, name: str) -> Shape:
        config = self.config
        own: dict[str, Shape] = {
            "sos": ("R", config.width),
            "shared": ("R", 1, 6, config.width),
            "head": ("R", 2, config.width),
            "mask": ("R", 1, 1, "T"),
            "ca_k": ("R", config.heads, "T", config.head_width),
            "ca_v": ("R", config.heads, "T", config.head_width),
            "noise": ("B", self.plan.count, config.token_bits),
        }
        return own.get(name.partition(".")[0]) or super().input_shape(name)

    def blocks(self) -> Iterable[Block]:
        return self.model.blocks()

    def positions(self, state: Mapping[str, Tensor]) -> Rope:
        return self.rope[0], self.rope[1]

    def embed(self, state: Mapping[str, Tensor]) -> Tensor:
        plan, model = self.plan, self.model
        level = model.lvl_embed.weight[plan.scale]
        if plan.scale == 0:
            return state["sos"].unsqueeze(1) + model.pos_start + level
        tokens = tokens_of(state["summed"], plan.size, self.config.patchify)
        x = model.word_embed(tokens.to(model.pos_start.dtype))
        return (torch.cat([x, x]) if plan.guidance else x) + level

    def before_layer(self, layer: int, x: Tensor) -> Tensor:
        return x + self.model.lvl_embed.weight[self.plan.scale] if layer and layer % self.chunk == 0 else x

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
        return block(x, state["shared"], rope, self._text(layer, state), past, reads_entropy)  # type: ignore[no-any-return]

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
        return block.attention_branch(x, state["shared"], rope, past, reads_entropy)

    def other_branches(self, layer: int, block: Block, state: Mapping[str, Tensor]) -> tuple[Branch, ...]:
        text = self._text(layer, state)
        return ("cross", lambda x: block.cross_branch(x, text)), ("mlp", lambda x: block.mlp_branch(x, state["shared"]))

    def after_layer(self, layer: int, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        if layer not in self.mixed_layers or not self.plan.guidance:
            return x
        mixed = mix(x, state).to(x.dtype)
        return torch.cat([mixed, mixed])

    def emit(self, x: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> None:
        """Draw the bits from the given noise and add their code to the running sum."""
        plan, noise, patchify = self.plan, state["noise"], self.config.patchify
        logits = self._logits(x, state, kept, out)
        probability = bit_probability(logits, self.sampling.top_k, self.sampling.top_p)
        if kept is None:
            bits = (noise < probability).to(logits.dtype)
        else:
            index = kept[: noise.shape[0]]
            drawn = (gather_tokens(noise, index) < probability).to(logits.dtype)
            # half a bit is a code of zero: a held token adds nothing
            bits = scatter_tokens(torch.full_like(noise, 0.5, dtype=logits.dtype), index, drawn)
        if self.observe:
            out["observed.logits"], out["observed.probability"], out["observed.bits"] = logits, probability, bits
        code = bits_to_code(bits, plan.size, patchify)
        code = resize(code, latent_size(self.profile.sizes[-1], patchify))
        out["summed"] = code if plan.scale == 0 else state["summed"] + code

    def _text(self, layer: int, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and mask of a layer's attention to the text."""
        return state[f"ca_k.{layer}"], state[f"ca_v.{layer}"], state["mask"]

    def _logits(self, x: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> Tensor:
        """Bit logits after temperature and guidance: `[B, n, 2 d]`."""
        logits, batch = self.model.logits(x, state["head"]).float(), state["noise"].shape[0]
        if self.plan.guidance and not self.mixes_logits:
            return (logits * (1 / state["tau"]))[:batch]
        guided = guide(self.plan, logits, state, kept, out, state["tau"])
        return guided if self.plan.guidance else guided[:batch]
