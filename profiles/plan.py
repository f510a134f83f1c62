"""What a schedule means for each scale: which tensors go in and out of its subgraph, and what it costs.

Derived once, without torch, so that inspection, dry runs, export, run time and cost models cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .errors import ScheduleError
from .model import ModelProfile
from .schedule import Schedule, TokenRule

NOISES = ("noise", "smooth_noise", "diffusion_noise")
"""State of one scale, a batch of images in front."""
NUMBERS = ("cfg", "tau")
"""State of one scale, the same for all images."""
ROWLESS = frozenset(("summed", "entropy", "difference", *NOISES, *NUMBERS))
"""State that has a batch of images, or nothing, in front; everything else has rows and loses the unconditional ones."""
BRANCHES = ("attention", "cross", "mlp")
"""Branches of a layer, in order; `delta_attention.L` is the state's name of an attention output that is enlarged later."""
FP32_STATE = ROWLESS | {"positions"}
"""State that is fp32 whatever the model's dtype: what codes are drawn from and summed in, and positions."""


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
        writes_branches: Layers whose branch outputs a later scale reads.
        reuse: Layers that do not run and add an earlier update, each with the scale that it is of.
        difference_from: Scale whose difference between the rows' logits guides this one, or None.
        writes_difference: Whether a later scale reads this scale's difference.
        begun: Layers whose cached keys begin with scale 0, and so with the text where a family's text runs there.
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
    writes_branches: tuple[int, ...] = ()
    begun: tuple[int, ...] = ()
    reuse: tuple[tuple[int, int], ...] = ()
    difference_from: int | None = None
    writes_difference: bool = False

    @property
    def count(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def rows(self) -> int:
        """Rows an image: 2 with guidance, else 1."""
        return 2 if self.guidance else 1

    @property
    def computed(self) -> ScalePlan:
        """The plan without what the scale's function does not depend on: of two that are equal so, the graphs are the same."""
        return replace(self, drops_guidance=False, entropy_layer=self.entropy_layer if self.writes_entropy else 0)

    @property
    def cache_scale(self) -> int | None:
        """The earlier scale that fills what the kept tokens leave, where the fill takes one."""
        return self.tokens.cache_scale if self.tokens is not None else None

    @property
    def update_sources(self) -> dict[int, int]:
        """Layers that read an earlier scale's update, each with that scale, layers rising."""
        found = dict(self.reuse)
        if self.cache_scale is not None:
            found |= dict.fromkeys(self._pruned("cache"), self.cache_scale)
        return dict(sorted(found.items()))

    @property
    def delta_layers(self) -> tuple[int, ...]:
        """Layers that read an earlier scale's update."""
        return tuple(self.update_sources)

    @property
    def branch_layers(self) -> tuple[int, ...]:
        """Layers that read the branch outputs of an earlier scale."""
        return self._pruned("branch")

    def _pruned(self, fill: str) -> tuple[int, ...]:
        if self.tokens is None or self.tokens.fill != fill:
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
            0 if layer in rule.idle_layers else (tokens.kept[layer] if tokens else rule.count)
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
                writes_delta=tuple(sorted({*_readers(schedule, scale, "cache"), *_reused(schedule, scale)})),
                writes_branches=_readers(schedule, scale, "branch"),
                begun=plans[0].layers if plans else (),
                reuse=_sources(schedule, scale),
                difference_from=schedule.difference_source(scale) if rule.guidance_reuse else None,
                writes_difference=any(
                    r.run and r.guidance_reuse and schedule.difference_source(r.scale) == scale for r in schedule.scales
                ),
            )
        )
        past = [before + now for before, now in zip(past, kept, strict=True)]
    _check_newest(plans)
    return tuple(plans)


def _check_newest(plans: Sequence[ScalePlan]) -> None:
    """The state holds one update a layer: refuse a reader whose scale was overwritten by a newer one."""
    newest: dict[tuple[str, int], int] = {}
    for plan in plans:
        branches = dict.fromkeys(plan.branch_layers, plan.cache_scale)
        for fill, sources in (("cache", plan.update_sources), ("branch", branches)):
            for layer, source in sources.items():
                found = newest[fill, layer]
                if found != source:
                    raise ScheduleError(
                        f"scale {plan.scale}: reads layer {layer} of scale {source}, but scale {found} wrote a newer one for a "
                        "scale between; use one cache_scale"
                    )
        newest |= {("cache", layer): plan.scale for layer in plan.writes_delta}
        newest |= {("branch", layer): plan.scale for layer in plan.writes_branches}


def plan_paths(schedule: Schedule) -> tuple[tuple[ScalePlan, ...], ...]:
    """The scales that run on each path of a schedule with rungs; for one without, a single path.

    Scales that compute the same are one and the same plan on every path, so that an engine holds them once: it hands on what
    any of the paths reads. A narrowing of rows that have been narrowed before changes nothing.
    """
    paths = [plan_scales(path) for path in schedule.paths]
    decision = schedule.decision
    shared: dict[ScalePlan, ScalePlan] = {}
    for plan in (plan for path in paths for plan in path):
        asked = decision is not None and decision.features == "entropy" and plan.scale == decision.scale
        known = shared.get(_computed(plan), plan)
        shared[_computed(plan)] = replace(
            plan,
            last=plan.last and known.last,
            drops_guidance=plan.drops_guidance or known.drops_guidance,
            writes_entropy=asked or plan.writes_entropy or known.writes_entropy,
            writes_delta=tuple(sorted({*plan.writes_delta, *known.writes_delta})),
            writes_branches=tuple(sorted({*plan.writes_branches, *known.writes_branches})),
            writes_difference=plan.writes_difference or known.writes_difference,
        )
    merged = tuple(tuple(shared[_computed(plan)] for plan in path) for path in paths)
    for path in merged:
        _check_newest(path)
    return merged


def _computed(plan: ScalePlan) -> ScalePlan:
    """What a scale computes, whatever later scales make of it."""
    return replace(
        plan,
        last=False,
        drops_guidance=False,
        writes_entropy=False,
        writes_delta=(),
        writes_branches=(),
        writes_difference=False,
    )


def _sources(schedule: Schedule, scale: int) -> tuple[tuple[int, int], ...]:
    """Layers of a scale that reuse an update, each with the scale that it is of."""
    pairs = ((layer, schedule.update_source(scale, layer)) for layer in schedule.scales[scale].reuse_layers)
    return tuple((layer, source) for layer, source in pairs if source is not None)


def _reused(schedule: Schedule, scale: int) -> set[int]:
    """Layers whose update at a scale is reused where a later scale does not run them."""
    readers = (rule.scale for rule in schedule.scales[scale + 1 :] if rule.run)
    return {layer for reader in readers for layer, source in _sources(schedule, reader) if source == scale}


def _readers(schedule: Schedule, scale: int, fill: str) -> tuple[int, ...]:
    """Layers in which a later scale of that fill enlarges what this one computed."""
    layers: set[int] = set()
    for rule in schedule.scales:
        if not (rule.run and rule.prunes_tokens and rule.tokens):
            continue
        if (rule.tokens.fill, rule.tokens.cache_scale) == (fill, scale):
            layers |= {
                layer for layer, kept in enumerate(rule.tokens.kept) if kept < rule.count and layer not in rule.idle_layers
            }
    return tuple(sorted(layers))


TEXT_TOKENS = 40
"""Text length assumed where FLOPs are stated; cross-attention is a small share."""


def scale_flops(plan: ScalePlan, profile: ModelProfile, text_tokens: int = TEXT_TOKENS) -> int:
    """Floating-point operations of one scale for one image, transformer only; a multiply-add counts as two."""
    config = profile.transformer
    total = config.emit_flops(plan.count, plan.sampled)
    for layer in plan.layers:
        total += config.layer_flops(plan.kept[layer], plan.past[layer] + plan.kept[layer], text_tokens)
    return plan.rows * total


def schedule_flops(schedule: Schedule, profile: ModelProfile) -> int:
    """Floating-point operations of all scales that run, for one image."""
    return sum(scale_flops(plan, profile) for plan in plan_scales(schedule))
