"""What runs at one scale, and which of its tokens: the parts that a schedule is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import ScheduleError
from .strict import build

SCORES = ("entropy", "random", "distance")
FILLS = ("hold", "cache", "bypass", "branch")
CACHED_FILLS = ("cache", "branch")
"""Fills that enlarge what an earlier scale computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """Which tokens of a scale run.

    Attributes:
        kept: Tokens that run through each layer, L numbers between 1 and the scale's tokens.
        score: `entropy` keeps the tokens of lowest attention entropy (the sharp ones), `random` a fixed random set,
            `distance` (of fill `branch` only) in each row those farthest from the mean token of what enters the branch.
        fill: What becomes of the others. `hold`: they leave the scale and get no residual code; every layer then keeps the
            same number. `cache`: in that layer they take the layer's update of an earlier scale, enlarged. `bypass`: in
            that layer they pass on unchanged. `branch`: tokens are chosen anew before each branch of the layer
            (self-attention, cross-attention, MLP); the others take the branch's output of an earlier scale, enlarged.
        cache_scale: With `cache` and `branch`, the earlier scale whose updates or outputs are enlarged.
    """

    kept: tuple[int, ...]
    score: str = "entropy"
    fill: str = "hold"
    cache_scale: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(self.kept))
        if not self.kept or any(not isinstance(n, int) or n < 1 for n in self.kept):
            raise ScheduleError(f"kept must list a whole number >= 1 for each layer, got {list(self.kept)}")
        if self.score not in SCORES:
            raise ScheduleError(f"score must be one of {SCORES}, got {self.score!r}")
        if self.fill not in FILLS:
            raise ScheduleError(f"fill must be one of {FILLS}, got {self.fill!r}")
        if self.fill == "hold" and len(set(self.kept)) != 1:
            raise ScheduleError(f"fill 'hold' keeps the same tokens in every layer, got {list(self.kept)}")
        if (self.fill in CACHED_FILLS) != (self.cache_scale is not None):
            raise ScheduleError(
                f"cache_scale belongs to the fills {CACHED_FILLS}, got fill {self.fill!r}, scale {self.cache_scale!r}"
            )
        if self.score == "distance" and self.fill != "branch":
            raise ScheduleError(f"score 'distance' looks at what enters a branch: use fill 'branch', got {self.fill!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRule:
    """What runs at one scale.

    Attributes:
        scale: 0-based index.
        size: (h, w) in tokens.
        run: False leaves the scale out: no residual, no keys and values.
        guidance: False drops the unconditional rows, from here on.
        skip_layers: Layers that do not run.
        reuse_layers: Layers that do not run but add their update of the newest earlier scale that ran them whole, enlarged.
        guidance_reuse: Without unconditional rows, guide by the difference between the rows' logits at the last guided scale
            that drew all its tokens, enlarged.
        tokens: Token pruning, or None for all tokens.
    """

    scale: int
    size: tuple[int, int]
    run: bool = True
    guidance: bool = True
    skip_layers: tuple[int, ...] = ()
    reuse_layers: tuple[int, ...] = ()
    guidance_reuse: bool = False
    tokens: TokenRule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        for name in ("skip_layers", "reuse_layers"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if len(self.size) != 2 or any(not isinstance(n, int) or n < 1 for n in self.size):
            raise ScheduleError(f"scale {self.scale}: size must be two whole numbers >= 1, got {list(self.size)}")
        if self.tokens is not None and max(self.tokens.kept) > self.count:
            raise ScheduleError(f"scale {self.scale}: keeps {max(self.tokens.kept)} of {self.count} tokens")
        if both := sorted(set(self.skip_layers) & set(self.reuse_layers)):
            raise ScheduleError(f"scale {self.scale}: layers {both} stand in skip_layers and in reuse_layers; choose one")
        if self.guidance_reuse and self.guidance:
            raise ScheduleError(f"scale {self.scale}: guidance_reuse is for a scale without its own rows; set guidance: false")

    @property
    def count(self) -> int:
        """Tokens of the scale, h * w."""
        return self.size[0] * self.size[1]

    @property
    def prunes_tokens(self) -> bool:
        return self.tokens is not None and min(self.tokens.kept) < self.count

    @property
    def idle_layers(self) -> tuple[int, ...]:
        """Layers that do not run, whether their update is reused or not."""
        return tuple(sorted((*self.skip_layers, *self.reuse_layers)))

    def runs_whole(self, layer: int) -> bool:
        """Whether all tokens run through a layer."""
        whole = self.tokens is None or self.tokens.kept[layer] == self.count
        return self.run and layer not in self.idle_layers and whole

    @property
    def draws_all(self) -> bool:
        """Whether every token of the scale is drawn."""
        return self.run and not (self.prunes_tokens and self.tokens is not None and self.tokens.fill == "hold")

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping; what few schedules use is written, and hashed, only where it is used."""
        data = asdict(self)
        for name in ("reuse_layers", "guidance_reuse"):
            if not data[name]:
                del data[name]
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to end an image.

    Attributes:
        name: As the decision names it.
        scales: Rules of the scales after the decision; of the first rung none: the schedule's own are its.
    """

    name: str
    scales: tuple[ScaleRule, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))


def read_rules(data: Any, where: str) -> tuple[ScaleRule, ...]:
    """Rules of a list of mappings; unknown keys are errors that name the place."""
    return tuple(_rule(item, f"{where}[{index}]") for index, item in enumerate(data or ()))


def _rule(data: Any, where: str) -> ScaleRule:
    if isinstance(data, dict) and data.get("tokens") is not None:
        data = {**data, "tokens": build(TokenRule, data["tokens"], f"{where}.tokens", ScheduleError)}
    return build(ScaleRule, data, where, ScheduleError)


def read_rung(data: Any, where: str) -> Rung:
    """A rung of a mapping."""
    if isinstance(data, dict):
        data = {**data, "scales": read_rules(data.get("scales"), f"{where}.scales")}
    return build(Rung, data, where, ScheduleError)
