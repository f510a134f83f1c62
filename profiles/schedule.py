"""The schedule: for each scale what runs. The one contract between calibration, compilation and run time.

Four dimensions: *scale* (not run: zero residual), *guidance* (unconditional rows dropped), *layer* (skipped), *token* (how
many are kept, which score picks them, what becomes of the others). Every count is an integer fixed at calibration; which
tokens are kept is decided per image, by the entropy that the FAE op just computed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import ScheduleError
from .model import ModelProfile
from .strict import build, read_yaml, write_atomic

SCORES = ("entropy", "random")
FILLS = ("hold", "cache", "bypass")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """Which tokens of a scale run.

    Attributes:
        kept: Tokens that run through each layer, L numbers between 1 and the scale's tokens.
        score: `entropy` keeps the tokens of lowest attention entropy (the sharp ones), `random` a fixed random set.
        fill: What becomes of the others. `hold`: they leave the scale and get no residual code; every layer then keeps the
            same number. `cache`: in that layer they take the layer's update of an earlier scale, enlarged. `bypass`: in
            that layer they pass on unchanged.
        cache_scale: With `cache`, the earlier scale whose updates are enlarged.
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
        if (self.fill == "cache") != (self.cache_scale is not None):
            raise ScheduleError(f"cache_scale belongs to fill 'cache', got fill {self.fill!r}, scale {self.cache_scale!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRule:
    """What runs at one scale.

    Attributes:
        scale: 0-based index.
        size: (h, w) in tokens.
        run: False leaves the scale out: no residual, no keys and values.
        guidance: False drops the unconditional rows, from here on.
        skip_layers: Layers that do not run.
        tokens: Token pruning, or None for all tokens.
    """

    scale: int
    size: tuple[int, int]
    run: bool = True
    guidance: bool = True
    skip_layers: tuple[int, ...] = ()
    tokens: TokenRule | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "skip_layers", tuple(sorted(set(self.skip_layers))))
        if len(self.size) != 2 or any(not isinstance(n, int) or n < 1 for n in self.size):
            raise ScheduleError(f"scale {self.scale}: size must be two whole numbers >= 1, got {list(self.size)}")
        if self.tokens is not None and max(self.tokens.kept) > self.count:
            raise ScheduleError(f"scale {self.scale}: keeps {max(self.tokens.kept)} of {self.count} tokens")

    @property
    def count(self) -> int:
        """Tokens of the scale, h * w."""
        return self.size[0] * self.size[1]

    @property
    def prunes_tokens(self) -> bool:
        return self.tokens is not None and min(self.tokens.kept) < self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule for one model at one geometry.

    Attributes:
        model: Name of the model profile.
        policy: How it was made, e.g. `toprovar`, `skip-1`.
        layers: Depth L of the model.
        guided: Whether unconditional rows exist at the first scale.
        scales: One rule a scale, coarse to fine.
        entropy_layer: The layer whose entropy map picks the tokens.
        provenance: Hashes, parameters and predictions; nothing in it changes what runs.
    """

    model: str
    policy: str
    layers: int
    guided: bool
    scales: tuple[ScaleRule, ...]
    entropy_layer: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not any(rule.run for rule in self.scales):
            raise ScheduleError("no scale runs")
        if not self.scales[0].run:
            raise ScheduleError("scale 0 must run: it holds the start token")
        if not 0 <= self.entropy_layer < self.layers:
            raise ScheduleError(f"entropy_layer must be 0 to {self.layers - 1}, got {self.entropy_layer}")
        for index, rule in enumerate(self.scales):
            self._check(index, rule)

    def _check(self, index: int, rule: ScaleRule) -> None:
        name = f"scale {index}"
        if rule.scale != index:
            raise ScheduleError(f"{name}: is numbered {rule.scale}; scales are listed coarse to fine, from 0")
        if rule.guidance and not (self.guided and all(r.guidance for r in self.scales[:index])):
            raise ScheduleError(f"{name}: guidance cannot return once dropped: the unconditional rows have no keys")
        if any(not 0 <= layer < self.layers for layer in rule.skip_layers):
            raise ScheduleError(f"{name}: skip_layers must be 0 to {self.layers - 1}, got {list(rule.skip_layers)}")
        if len(rule.skip_layers) == self.layers:
            raise ScheduleError(f"{name}: every layer is skipped; use run: false")
        if rule.tokens is None:
            return
        if len(rule.tokens.kept) != self.layers:
            raise ScheduleError(f"{name}: kept lists {len(rule.tokens.kept)} layers, the model has {self.layers}")
        if rule.tokens.fill == "cache":
            self._check_cache(index, rule.tokens)
        if rule.prunes_tokens and rule.tokens.score == "entropy" and not self.entropy_sources(index):
            raise ScheduleError(f"{name}: no earlier scale runs layer {self.entropy_layer}, so there is no entropy to read")

    def _check_cache(self, index: int, tokens: TokenRule) -> None:
        source = tokens.cache_scale
        if source is None or not 0 <= source < index or not self.scales[source].run:
            raise ScheduleError(f"scale {index}: cache_scale must be an earlier scale that runs, got {source!r}")
        rule = self.scales[source]
        pruned = [layer for layer, kept in enumerate(tokens.kept) if kept < self.scales[index].count]
        if rule.prunes_tokens or set(pruned) & set(rule.skip_layers):
            raise ScheduleError(f"scale {index}: cache_scale {source} must run layers {pruned} with all of its tokens")

    def entropy_sources(self, index: int) -> tuple[int, ...]:
        """Earlier scales that leave a whole entropy map, coarse to fine.

        A scale pruned by entropy completes its map from the one it read; one pruned otherwise has nothing to complete it with.
        """
        return tuple(
            rule.scale
            for rule in self.scales[:index]
            if rule.run
            and self.entropy_layer not in rule.skip_layers
            and (rule.tokens is None or rule.tokens.score == "entropy" or rule.tokens.kept[self.entropy_layer] == rule.count)
        )

    @property
    def removes_nothing(self) -> bool:
        """Whether every scale, row, layer and token runs."""
        return all(r.run and r.guidance == self.guided and not r.skip_layers and not r.prunes_tokens for r in self.scales)

    def digest(self) -> str:
        """SHA-256 of everything that changes what runs; provenance and the policy's name are left out."""
        data = self.to_dict()
        for key in ("provenance", "policy"):
            del data[key]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def check_model(self, profile: ModelProfile) -> None:
        """Raise ScheduleError where the schedule was made for another model or geometry."""
        sizes = tuple(rule.size for rule in self.scales)
        if self.layers != profile.transformer.depth:
            raise ScheduleError(f"schedule has {self.layers} layers, model {profile.name} {profile.transformer.depth}")
        if sizes != profile.sizes:
            raise ScheduleError(f"schedule was made for scales {sizes}, model {profile.name} runs {profile.sizes}")
        if self.guided != profile.sampling.guided:
            asked = "with" if profile.sampling.guided else "without"
            raise ScheduleError(f"schedule has guided: {self.guided}, the model is asked to run {asked} guidance")

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, as it stands in the YAML file."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "schedule") -> Schedule:
        """Build from a mapping; unknown keys anywhere are errors."""
        data = dict(data)
        rules = []
        for index, item in enumerate(data.get("scales") or ()):
            place = f"{where}: scales[{index}]"
            if isinstance(item, dict) and item.get("tokens") is not None:
                tokens = build(TokenRule, item["tokens"], f"{place}.tokens", ScheduleError)
                rules.append(build(ScaleRule, {**item, "tokens": tokens}, place, ScheduleError))
            else:
                rules.append(build(ScaleRule, item, place, ScheduleError))
        return build(cls, {**data, "scales": tuple(rules)}, where, ScheduleError)

    def save(self, path: Path) -> None:
        """Write YAML, atomically."""
        text = yaml.safe_dump({"format": 1, **self.to_dict()}, sort_keys=False, default_flow_style=None, width=120)
        write_atomic(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """Read YAML; every problem is a ScheduleError that names the file and the place."""
        return cls.from_dict(read_yaml(path, ScheduleError), path.name)
