"""The schedule: for each scale what runs. The one contract between calibration, compilation and run time.

Four dimensions: *scale* (not run: zero residual), *guidance* (unconditional rows dropped), *layer* (skipped), *token* (how
many are kept, which score picks them, what becomes of the others). Every count is an integer fixed at calibration; which
tokens are kept is decided per image, by the entropy that the FAE op just computed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from .decision import Decision, LinearModel
from .errors import ScheduleError
from .model import ModelProfile
from .rules import CACHED_FILLS, Rung, ScaleRule, TokenRule, read_rules, read_rung
from .strict import build, read_yaml, write_atomic

__all__ = ["Rung", "ScaleRule", "Schedule", "TokenRule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule for one model at one geometry.

    With rungs, images share the scales up to the decision, and each ends as the rung it picks; then `scales` are the first
    rung's, and all that is derived of them (plans, FLOPs, tables) tells of that rung unless it says otherwise.

    Attributes:
        model: Name of the model profile.
        policy: How it was made, e.g. `toprovar`, `skip-1`.
        layers: Depth L of the model.
        guided: Whether unconditional rows exist at the first scale.
        scales: One rule a scale, coarse to fine.
        entropy_layer: The layer whose entropy map picks the tokens.
        provenance: Hashes, parameters and predictions; nothing in it changes what runs.
        rungs: Ways to end an image, or none.
        decision: How an image picks its rung.
    """

    model: str
    policy: str
    layers: int
    guided: bool
    scales: tuple[ScaleRule, ...]
    entropy_layer: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()
    decision: Decision | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "rungs", tuple(self.rungs))
        if not self.scales or not any(rule.run for rule in self.scales):
            raise ScheduleError("no scale runs")
        if not self.scales[0].run:
            raise ScheduleError("scale 0 must run: it holds the start token")
        if not 0 <= self.entropy_layer < self.layers:
            raise ScheduleError(f"entropy_layer must be 0 to {self.layers - 1}, got {self.entropy_layer}")
        for index, rule in enumerate(self.scales):
            self._check(index, rule)
        if self.rungs or self.decision is not None:
            self._check_rungs()

    def _check_rungs(self) -> None:
        names = [rung.name for rung in self.rungs]
        if self.decision is None or len(names) < 2 or len(set(names)) < len(names):
            raise ScheduleError(f"rungs must be two or more of different names, with a decision, got {names}")
        if unknown := sorted(self.decision.rungs - set(names)):
            raise ScheduleError(f"decision: picks rungs {unknown}; the rungs are {names}")
        scale, last = self.decision.scale, len(self.scales) - 1
        if not 1 <= scale < last or not self.scales[scale].run:
            raise ScheduleError(f"decision: scale must be 1 to {last - 1} and run, got {scale}")
        if self.decision.features == "entropy" and scale not in self.entropy_sources(scale + 1):
            raise ScheduleError(f"decision: scale {scale} leaves no whole entropy map of layer {self.entropy_layer}")
        if not 0 <= (self.decision.view or 0) <= last:
            raise ScheduleError(f"decision: view must be a scale, 0 to {last}, got {self.decision.view}")
        for index, rung in enumerate(self.rungs):
            if len(rung.scales) != (last - scale if index else 0):
                raise ScheduleError(
                    f"rungs[{index}]: {rung.name} must list the {last - scale} scales after scale {scale}, the first rung none"
                )
            try:
                self.rung(index)
            except ScheduleError as problem:
                raise ScheduleError(f"rungs[{index}]: {problem}") from problem

    def rung(self, index: int) -> Schedule:
        """A rung as a schedule of its own, which all its images follow."""
        assert self.decision is not None, "only a schedule with a decision has rungs"
        rung = self.rungs[index]
        shared = self.scales[: self.decision.scale + 1]
        scales = (*shared, *rung.scales) if index else self.scales
        return replace(self, policy=f"{self.policy}: {rung.name}", scales=scales, rungs=(), decision=None)

    @property
    def paths(self) -> tuple[Schedule, ...]:
        """What an image may run through: each rung, or the schedule itself."""
        return tuple(self.rung(index) for index in range(len(self.rungs))) or (self,)

    def _check(self, index: int, rule: ScaleRule) -> None:
        name = f"scale {index}"
        if rule.scale != index:
            raise ScheduleError(f"{name}: is numbered {rule.scale}; scales are listed coarse to fine, from 0")
        if rule.guidance and not (self.guided and all(r.guidance for r in self.scales[:index])):
            raise ScheduleError(f"{name}: guidance cannot return once dropped: the unconditional rows have no keys")
        for field_name in ("skip_layers", "reuse_layers"):
            layers = getattr(rule, field_name)
            if any(not 0 <= layer < self.layers for layer in layers):
                raise ScheduleError(f"{name}: {field_name} must be 0 to {self.layers - 1}, got {list(layers)}")
        if len(rule.idle_layers) == self.layers:
            raise ScheduleError(f"{name}: every layer is skipped; use run: false")
        self._check_reuse(index, rule)
        if rule.tokens is None:
            return
        if len(rule.tokens.kept) != self.layers:
            raise ScheduleError(f"{name}: kept lists {len(rule.tokens.kept)} layers, the model has {self.layers}")
        if rule.tokens.fill in CACHED_FILLS:
            self._check_cache(index, rule.tokens)
        if rule.prunes_tokens and rule.tokens.score == "entropy" and not self.entropy_sources(index):
            raise ScheduleError(f"{name}: no earlier scale runs layer {self.entropy_layer}, so there is no entropy to read")

    def _check_reuse(self, index: int, rule: ScaleRule) -> None:
        if missing := [layer for layer in rule.reuse_layers if self.update_source(index, layer) is None]:
            raise ScheduleError(f"scale {index}: reuse_layers {missing} ran whole at no earlier scale; use skip_layers")
        if rule.guidance_reuse and self.difference_source(index) is None:
            raise ScheduleError(f"scale {index}: guidance_reuse needs an earlier guided scale that draws all its tokens")

    def update_source(self, index: int, layer: int) -> int | None:
        """The newest earlier scale that runs a layer with all tokens: its update is what scale `index` reuses."""
        return next((rule.scale for rule in self.scales[:index][::-1] if rule.runs_whole(layer)), None)

    def difference_source(self, index: int) -> int | None:
        """The last guided scale before scale `index` that draws all its tokens: its difference guides the later ones."""
        return next((rule.scale for rule in self.scales[:index][::-1] if rule.guidance and rule.draws_all), None)

    def _check_cache(self, index: int, tokens: TokenRule) -> None:
        source = tokens.cache_scale
        if source is None or not 0 <= source < index or not self.scales[source].run:
            raise ScheduleError(f"scale {index}: cache_scale must be an earlier scale that runs, got {source!r}")
        rule = self.scales[source]
        pruned = [layer for layer, kept in enumerate(tokens.kept) if kept < self.scales[index].count]
        if rule.prunes_tokens or set(pruned) & set(rule.idle_layers):
            raise ScheduleError(f"scale {index}: cache_scale {source} must run layers {pruned} with all of its tokens")

    def entropy_sources(self, index: int) -> tuple[int, ...]:
        """Earlier scales that leave a whole entropy map, coarse to fine.

        A scale pruned by entropy completes its map from the one it read; one pruned otherwise has nothing to complete it with.
        """
        return tuple(
            rule.scale
            for rule in self.scales[:index]
            if rule.run
            and self.entropy_layer not in rule.idle_layers
            and (rule.tokens is None or rule.tokens.score == "entropy" or rule.tokens.kept[self.entropy_layer] == rule.count)
        )

    @property
    def removes_nothing(self) -> bool:
        """Whether every scale, row, layer and token runs, in every rung."""
        if self.rungs:
            return all(path.removes_nothing for path in self.paths)
        return all(r.run and r.guidance == self.guided and not r.idle_layers and not r.prunes_tokens for r in self.scales)

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
        if not profile.sampling.guides_logits and any(r.guidance_reuse for path in self.paths for r in path.scales):
            raise ScheduleError(
                f"model {profile.name} guides inside its layers, so no difference of logits can be reused; drop guidance_reuse"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, as it stands in the YAML file."""
        data = asdict(self) | {"scales": [rule.to_dict() for rule in self.scales]}
        data["rungs"] = [{"name": rung.name, "scales": [rule.to_dict() for rule in rung.scales]} for rung in self.rungs]
        if not self.rungs:
            # a schedule without rungs is written, and hashed, as it was before there were any
            del data["rungs"], data["decision"]
        return json.loads(json.dumps(data))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "schedule") -> Schedule:
        """Build from a mapping; unknown keys anywhere are errors."""
        data = {**data, "scales": read_rules(data.get("scales"), f"{where}: scales")}
        if data.get("rungs"):
            data["rungs"] = tuple(read_rung(item, f"{where}: rungs[{i}]") for i, item in enumerate(data["rungs"]))
        if data.get("decision") is not None:
            data["decision"] = _decision(data["decision"], f"{where}: decision")
        return build(cls, data, where, ScheduleError)

    def save(self, path: Path) -> None:
        """Write YAML, atomically."""
        text = yaml.safe_dump({"format": 1, **self.to_dict()}, sort_keys=False, default_flow_style=None, width=120)
        write_atomic(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Schedule:
        """Read YAML; every problem is a ScheduleError that names the file and the place."""
        return cls.from_dict(read_yaml(path, ScheduleError), path.name)


def _decision(data: Any, where: str) -> Decision:
    if isinstance(data, dict):
        models = enumerate(data.get("models") or ())
        data = {**data, "models": tuple(build(LinearModel, m, f"{where}.models[{i}]", ScheduleError) for i, m in models)}
    return build(Decision, data, where, ScheduleError)
