"""What a schedule means for each scale: which tensors go in and out of its subgraph, and what it costs.

Derived once, without torch, so that inspection, dry runs, export, run time and cost models cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import ModelProfile
from .schedule import Schedule, TokenRule

ROWLESS = frozenset(("summed", "noise", "entropy", "cfg", "tau"))
"""State that has a batch of images, or nothing, in front; everything else has rows and loses the unconditional ones."""
FP32_STATE = ROWLESS
"""State that is fp32 whatever the model's dtype: what bits are drawn from and what codes are summed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePlan:
    """One scale that runs.

    Attributes:
        scale: 0-based index.
        size: (h, w) in tokens.
        offset: Where the scale's noise begins in the image's noise, in tokens of the full schedule.
        guidance: Whether unconditional rows run.
        drops_guidance: Whether the rows were there at the scale before.
        layers: Layers that run.
        kept: Tokens that run through each layer, L numbers; 0 where the layer is skipped.
        tokens: The token rule where it prunes, else None.
        past: Cached keys of each layer before this scale, L numbers.
        last: No later scale runs, so no keys and values are handed on.
        entropy_layer: The layer whose entropy map is read and written.
        entropy_from: Scale whose entropy map is read, or None.
        writes_entropy: Whether a later scale reads this scale's map.
        writes_delta: Layers whose update a later scale reads.
    """

    scale: int
    size: tuple[int, int]
    offset: int
    guidance: bool
    drops_guidance: bool
    layers: tuple[int, ...]
    kept: tuple[int, ...]
    tokens: TokenRule | None
    past: tuple[int, ...]
    last: bool
    entropy_layer: int
    entropy_from: int | None
    writes_entropy: bool
    writes_delta: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def rows(self) -> int:
        """Rows an image: 2 with guidance, else 1."""
        return 2 if self.guidance else 1

    @property
    def delta_layers(self) -> tuple[int, ...]:
        """Layers that read an earlier scale's update."""
        if self.tokens is None or self.tokens.fill != "cache":
            return ()
        return tuple(layer for layer in self.layers if self.kept[layer] < self.count)

    @property
    def sampled(self) -> int:
        """Tokens that emit bits."""
        if self.tokens is not None and self.tokens.fill == "hold":
            return self.tokens.kept[0]
        return self.count


def plan_scales(schedule: Schedule) -> tuple[ScalePlan, ...]:
    """The scales that run, coarse to fine."""
    running = [rule.scale for rule in schedule.scales if rule.run]
    readers = {
        rule.scale
        for rule in schedule.scales
        if rule.run and rule.prunes_tokens and rule.tokens and rule.tokens.score == "entropy"
    }
    past = [0] * schedule.layers
    plans: list[ScalePlan] = []
    for scale in running:
        rule = schedule.scales[scale]
        tokens = rule.tokens if rule.prunes_tokens else None
        kept = tuple(
            0 if layer in rule.skip_layers else (tokens.kept[layer] if tokens else rule.count)
            for layer in range(schedule.layers)
        )
        sources = schedule.entropy_sources(scale)
        plans.append(
            ScalePlan(
                scale=scale,
                size=rule.size,
                offset=sum(r.count for r in schedule.scales[:scale]),
                guidance=rule.guidance,
                drops_guidance=bool(plans) and plans[-1].guidance and not rule.guidance,
                layers=tuple(layer for layer in range(schedule.layers) if kept[layer]),
                kept=kept,
                tokens=tokens,
                past=tuple(past),
                last=scale == running[-1],
                entropy_layer=schedule.entropy_layer,
                entropy_from=sources[-1] if scale in readers else None,
                writes_entropy=any(scale == schedule.entropy_sources(reader)[-1] for reader in readers if reader > scale),
                writes_delta=_delta_readers(schedule, scale),
            )
        )
        past = [before + now for before, now in zip(past, kept, strict=True)]
    return tuple(plans)


def _delta_readers(schedule: Schedule, scale: int) -> tuple[int, ...]:
    layers: set[int] = set()
    for rule in schedule.scales:
        if rule.run and rule.prunes_tokens and rule.tokens and rule.tokens.cache_scale == scale:
            layers |= {
                layer for layer, kept in enumerate(rule.tokens.kept) if kept < rule.count and layer not in rule.skip_layers
            }
    return tuple(sorted(layers))


TEXT_TOKENS = 40
"""Text length assumed where FLOPs are stated; cross-attention is a small share."""


def scale_flops(plan: ScalePlan, profile: ModelProfile, text_tokens: int = TEXT_TOKENS) -> int:
    """Floating-point operations of one scale for one image, transformer only; a multiply-add counts as two."""
    config = profile.transformer
    width = config.width
    hidden = round(width * config.mlp_ratio / 256) * 256
    total = 0
    for layer in plan.layers:
        tokens, keys = plan.kept[layer], plan.past[layer] + plan.kept[layer]
        linear = 2 * width * (4 * width + 2 * width + 2 * hidden)
        total += tokens * (linear + 4 * width * keys + 4 * width * text_tokens)
    emit = plan.sampled * 2 * width * 2 * config.token_bits + plan.count * 2 * width * config.token_bits
    return plan.rows * (total + emit)


def schedule_flops(schedule: Schedule, profile: ModelProfile) -> int:
    """Floating-point operations of all scales that run, for one image."""
    return sum(scale_flops(plan, profile) for plan in plan_scales(schedule))
