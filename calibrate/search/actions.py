"""What a search may do to a model: where the run ends, where guidance ends, what each late scale gives up.

A `Plan` names one combination; `build` makes a schedule of it. Elementary plans change one thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ...profiles.baselines import dense
from ...profiles.model import ModelProfile
from ...profiles.plan import plan_scales, scale_flops
from ...profiles.schedule import ScaleRule, Schedule, TokenRule
from ..policy import MAP_SIDE_MIN

SHARES = (0.75, 0.5, 0.35, 0.25, 0.15)
FILLS = ("hold", "cache")
# scales below this share of the dense FLOPs are left alone: nothing can be gained there
WORTH = 0.04


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """What one scale gives up.

    Attributes:
        share: Of its tokens that run; 1 keeps all.
        fill: What becomes of the others.
        skipped: Layers that do not run.
        reused: Layers that do not run but add their update of an earlier scale.
    """

    share: float = 1.0
    fill: str = "hold"
    skipped: tuple[int, ...] = ()
    reused: tuple[int, ...] = ()

    @property
    def idle(self) -> tuple[int, ...]:
        """Layers that do not run."""
        return (*self.skipped, *self.reused)


@dataclass(frozen=True, slots=True)
class Plan:
    """One combination.

    Attributes:
        runs: Scales that run, from the first.
        guided: Scales that run with guidance, from the first.
        changes: By scale; scales that are not named run whole.
        reuse: Whether the scales without guidance are guided by the difference of the last guided one.
    """

    runs: int
    guided: int
    changes: Mapping[int, Change] = field(default_factory=dict)
    reuse: bool = False

    def key(self) -> tuple[int, int, bool, tuple[tuple[int, Change], ...]]:
        return (*self.ends, tuple(sorted(self.changes.items())))

    @property
    def ends(self) -> tuple[int, int, bool]:
        """Where run and guidance end, and how."""
        return self.runs, self.guided, self.reuse

    @property
    def is_product(self) -> bool:
        """Whether it is a product of skip-N and noguide-M and nothing else."""
        return not self.changes and not self.reuse


def late_scales(profile: ModelProfile) -> tuple[int, ...]:
    """Scales whose share of the FLOPs is worth a change, coarse to fine; each has a scale before it whose map ranks tokens."""
    flops = {plan.scale: scale_flops(plan, profile) for plan in plan_scales(dense(profile))}
    whole = sum(flops.values())
    large = {s for s, size in enumerate(profile.sizes) if min(size) >= MAP_SIDE_MIN}
    return tuple(s for s in flops if flops[s] >= WORTH * whole and s - 1 in large)


def build(plan: Plan, profile: ModelProfile) -> Schedule:
    """The schedule of a plan.

    Raises:
        ScheduleError: A change contradicts another, such as an update cached of a scale that is pruned.
    """
    base = dense(profile)
    pruned = [scale for scale, change in plan.changes.items() if change.share < 1 or change.idle]
    whole = min(pruned, default=0) - 1
    rules = []
    for rule in base.scales:
        change = plan.changes.get(rule.scale, Change()) if rule.scale < plan.runs else Change()
        rules.append(
            replace(
                rule,
                run=rule.scale < plan.runs,
                guidance=base.guided and rule.scale < plan.guided,
                guidance_reuse=plan.reuse and base.guided and plan.guided <= rule.scale < plan.runs,
                skip_layers=change.skipped,
                reuse_layers=change.reused,
                tokens=_tokens(rule, change, base.layers, whole),
            )
        )
    return replace(base, policy="auto", scales=tuple(rules))


def _tokens(rule: ScaleRule, change: Change, layers: int, whole: int) -> TokenRule | None:
    if change.share >= 1:
        return None
    kept = (max(1, round(change.share * rule.count)),) * layers
    return TokenRule(kept=kept, fill=change.fill, cache_scale=whole if change.fill == "cache" else None)


def grid(profile: ModelProfile) -> Iterator[Plan]:
    """Every product of skip-N and noguide-M that begins at a scale worth it, dense included."""
    count = len(profile.sizes)
    first = min(late_scales(profile), default=count - 1) - 1
    guided = range(first, count + 1) if profile.sampling.guided else (count,)
    for runs in range(first + 1, count + 1):
        for last in guided:
            if last <= runs:
                yield Plan(runs, count if last == runs else last)


def reused_ends(profile: ModelProfile) -> Iterator[Plan]:
    """The products whose guidance ends before the run does, with the difference reused, where the model can."""
    if profile.sampling.guided and profile.sampling.guides_logits:
        for plan in grid(profile):
            if plan.guided < plan.runs:
                yield replace(plan, reuse=True)


def token_changes(profile: ModelProfile) -> Iterator[tuple[int, Change]]:
    """Each late scale with each share and fill."""
    for scale in late_scales(profile):
        for share in SHARES:
            for fill in FILLS:
                yield scale, Change(share, fill)


def layer_changes(profile: ModelProfile) -> Iterator[tuple[int, Change]]:
    """Each late scale with each single layer left out, and with its update reused."""
    for scale in late_scales(profile):
        for layer in range(profile.transformer.depth):
            yield scale, Change(skipped=(layer,))
            yield scale, Change(reused=(layer,))
