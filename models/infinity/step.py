"""One scale as a pure function: state in, state out. The unit that calibration, export, CUDA graphs and tests all use.

The state is a mapping of named tensors (B images; R rows, B conditional and then B unconditional while guidance runs):

    summed                      [B, d, H, W] running sum of codes (absent before the first scale)
    sos, shared, head, mask     the condition, see `transformer.Condition`
    ca_k.L, ca_v.L              [R, H, T, D] cross-attention keys and values of layer L
    k.L, v.L                    [R, H, P, D] cached keys and values of layer L (absent while empty)
    entropy                     [B, 1, h, w] entropy map of the last scale that wrote one, in nats
    delta.L                     [R, C, h, w] update of layer L at the scale that a later one enlarges
    noise                       [B, N, d] uniform in [0, 1), this scale's
    cfg, tau                    [1] guidance strength and temperature of this scale

`summed`, `entropy`, `noise`, `cfg` and `tau` are fp32 whatever the model's dtype: bits are drawn and codes are summed in fp32.

Where a schedule drops guidance, the caller narrows the state to its conditional rows first (`narrow_rows`).
A schedule changes the function by rules (drop rows, skip layers, gather kept tokens, scatter), never by a second model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...profiles.geometry import rope_reference
from ...profiles.model import ModelProfile
from ...profiles.plan import ROWLESS, ScalePlan
from .blocks import Block
from .quantizer import bit_probability, bits_to_code, latent_size, resize, tokens_of
from .rope import Rope, rope_table
from .select import gather_rope, gather_tokens, scatter_tokens, select_tokens
from .transformer import Infinity

State = dict[str, Tensor]


def narrow_rows(state: Mapping[str, Tensor], batch: int) -> State:
    """The state with its conditional rows only: views, no copies."""
    return {name: value if name in ROWLESS else value[:batch] for name, value in state.items()}


class ScaleStep(nn.Module):
    """A scale of a schedule, bound to the model's weights."""

    rope: Tensor

    def __init__(self, model: Infinity, profile: ModelProfile, plan: ScalePlan, observe: bool = False) -> None:
        """Bind.

        Args:
            model: The weights; shared, never copied.
            profile: Geometry and sampling rules.
            plan: What runs at this scale.
            observe: Also return `observed.*`: every layer's entropy and update norms, logits, probabilities and bits.
        """
        super().__init__()
        self.model, self.profile, self.plan, self.observe = model, profile, plan, observe
        config, insertion = profile.transformer, profile.sampling.cfg_insertion_layer
        table = rope_table(plan.size, rope_reference(profile.aspect_ratio), config.head_width)
        self.register_buffer("rope", table.to(model.pos_start.device), persistent=False)
        self.mixed_layers = tuple(config.depth + entry for entry in insertion if entry < 0)
        self.mixes_logits = 0 in insertion
        self.chunk = config.depth // config.block_chunks if config.level_embed_every_chunk else config.depth

    @property
    def holds(self) -> bool:
        """Whether pruned tokens leave the scale altogether."""
        return self.plan.tokens is not None and self.plan.tokens.fill == "hold"

    def input_names(self) -> tuple[str, ...]:
        """Names of the state this scale reads, in a fixed order."""
        plan = self.plan
        mixes = plan.guidance and (self.mixes_logits or bool(self.mixed_layers))
        return (
            "sos" if plan.scale == 0 else "summed",
            *("shared", "head", "mask", "noise", "tau"),
            *(("cfg",) if mixes else ()),
            *(f"ca_{kind}.{layer}" for layer in plan.layers for kind in "kv"),
            *(f"{kind}.{layer}" for layer in plan.layers if plan.past[layer] for kind in "kv"),
            *(("entropy",) if plan.entropy_from is not None else ()),
            *(f"delta.{layer}" for layer in plan.delta_layers),
        )

    def output_names(self) -> tuple[str, ...]:
        """Names of the state this scale replaces or adds, in a fixed order."""
        plan = self.plan
        return (
            "summed",
            *(() if plan.last else (f"{kind}.{layer}" for layer in plan.layers for kind in "kv")),
            *(("entropy",) if plan.writes_entropy else ()),
            *(f"delta.{layer}" for layer in plan.writes_delta),
        )

    def forward(self, state: Mapping[str, Tensor]) -> State:
        """Run the scale: `input_names()` in, `output_names()` out, and `observed.*` where asked."""
        plan, out = self.plan, State()
        x, rope = self._embed(state), (self.rope[0], self.rope[1])
        kept = self._select(state) if plan.tokens is not None else None
        if kept is not None and self.holds:
            x, rope = gather_tokens(x, kept), gather_rope(rope, kept)
        for layer, block in enumerate(self.model.blocks()):
            if layer and layer % self.chunk == 0:
                x = x + self.model.lvl_embed.weight[plan.scale]
            if plan.kept[layer]:
                x = self._layer(layer, block, x, rope, kept, state, out)
            if layer in self.mixed_layers and plan.guidance:
                mixed = self._mix(x, state).to(x.dtype)
                x = torch.cat([mixed, mixed])
        logits = self._logits(x, state)
        self._emit(logits, state, kept if self.holds else None, out)
        # export names outputs by position
        return {name: out.pop(name) for name in self.output_names()} | out

    def _embed(self, state: Mapping[str, Tensor]) -> Tensor:
        """Residual stream before block 0: `[R, N, C]`."""
        plan, model = self.plan, self.model
        level = model.lvl_embed.weight[plan.scale]
        if plan.scale == 0:
            return state["sos"].unsqueeze(1) + model.pos_start + level
        tokens = tokens_of(state["summed"], plan.size, self.profile.transformer.patchify)
        x = model.word_embed(tokens.to(model.pos_start.dtype))
        return (torch.cat([x, x]) if plan.guidance else x) + level

    def _select(self, state: Mapping[str, Tensor]) -> Tensor:
        """Kept tokens `[R, n]`: best first, or ascending where they leave together; n is the most a pruned layer keeps."""
        plan = self.plan
        assert plan.tokens is not None
        most = max(n for n in plan.kept if n < plan.count)
        kept = select_tokens(plan.tokens.score, most, plan.size, state["noise"].shape[0], state.get("entropy"), seed=plan.scale)
        if self.holds:
            kept = kept.sort(dim=-1).values
        return torch.cat([kept, kept]) if plan.guidance else kept

    def _layer(
        self,
        layer: int,
        block: Block,
        x: Tensor,
        rope: Rope,
        kept: Tensor | None,
        state: Mapping[str, Tensor],
        out: State,
    ) -> Tensor:
        """One layer, on all tokens of x or on the kept ones only."""
        plan = self.plan
        pruned = kept is not None and not self.holds and plan.kept[layer] < plan.count
        # ascending order keeps memory access ordered
        index = kept[:, : plan.kept[layer]].sort(dim=-1).values if kept is not None and pruned else None
        part = x if index is None else gather_tokens(x, index)
        table = rope if index is None else gather_rope(rope, index)
        text = (state[f"ca_k.{layer}"], state[f"ca_v.{layer}"], state["mask"])
        past = (state[f"k.{layer}"], state[f"v.{layer}"]) if plan.past[layer] else None
        writes = plan.writes_entropy and layer == plan.entropy_layer
        y, k, v, entropy = block(part, state["shared"], table, text, past, writes or self.observe)
        if not plan.last:
            out[f"k.{layer}"], out[f"v.{layer}"] = k, v
        if writes and entropy is not None:
            out["entropy"] = self._entropy_map(entropy, kept if self.holds else index, state)
        if self.observe and entropy is not None:
            out[f"observed.entropy.{layer}"] = entropy
            out[f"observed.update.{layer}"] = (y - part).norm(dim=-1) / part.norm(dim=-1)
        if layer in plan.writes_delta:
            out[f"delta.{layer}"] = (y - x).transpose(1, 2).unflatten(-1, plan.size)
        if index is None:
            return y  # type: ignore[no-any-return]
        if layer in plan.delta_layers:
            x = x + resize(state[f"delta.{layer}"], plan.size).flatten(2).transpose(1, 2)
        return scatter_tokens(x, index, y)

    def _entropy_map(self, entropy: Tensor, index: Tensor | None, state: Mapping[str, Tensor]) -> Tensor:
        """`[R, H, n]` -> `[B, 1, h, w]`: mean over the heads of the conditional rows; pruned tokens keep the older map."""
        batch = state["noise"].shape[0]
        tokens: Tensor = entropy[:batch].mean(dim=1)
        if index is not None:
            tokens = resize(state["entropy"], self.plan.size).flatten(1).scatter(1, index[:batch], tokens)
        return tokens.reshape(batch, 1, *self.plan.size)

    def _mix(self, rows: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Guidance: cfg * conditional + (1 - cfg) * unconditional."""
        batch = state["noise"].shape[0]
        return state["cfg"] * rows[:batch] + (1 - state["cfg"]) * rows[batch:]

    def _logits(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Bit logits after temperature and guidance: `[B, n, 2 d]`."""
        logits = self.model.logits(x, state["head"]).float() * (1 / state["tau"])
        if self.plan.guidance and self.mixes_logits:
            return self._mix(logits, state)
        return logits[: state["noise"].shape[0]]

    def _emit(self, logits: Tensor, state: Mapping[str, Tensor], kept: Tensor | None, out: State) -> None:
        """Draw the bits from the given noise and add their code to the running sum."""
        plan, patchify = self.plan, self.profile.transformer.patchify
        sampling = self.profile.sampling
        probability = bit_probability(logits, sampling.top_k, sampling.top_p)
        noise = state["noise"]
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
