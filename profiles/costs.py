"""What a schedule costs in time on one target: measured milliseconds of layers and of what surrounds them, added up.

FLOPs do not tell latency: small matrices run slower, the decoder takes what it takes. So each target is measured once, at a
few numbers of tokens a scale, and every schedule is priced from that table, as a search needs it, without building an engine.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CostError
from .geometry import tokens_through
from .plan import ScalePlan, plan_scales
from .schedule import Schedule
from .strict import build, write_atomic

Curve = tuple[tuple[int, ...], tuple[float, ...]]
"""Tokens, rising, and their milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer at one measured point.

    Attributes:
        scale: 0-based index.
        rows: An image: 2 with guidance, else 1.
        tokens: That run through the layer.
        past: Cached keys before the scale.
        ms: Of one layer, for all images of the table's batch.
    """

    scale: int
    rows: int
    tokens: int
    past: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTime:
    """What a scale costs beside its layers: embedding, head, sampling, quantiser, launch.

    Attributes:
        scale: 0-based index.
        rows: An image: 2 with guidance, else 1.
        ms: For all images of the table's batch; may be a little below 0 where the split is noise.
    """

    scale: int
    rows: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTime:
    """What picking a rung costs beside the scales: the look at the images, the wait for the host, the state taken along.

    Attributes:
        features: What is looked at, see `decision.FEATURES`.
        tokens: Of all scales up to the decision.
        ms: For all images of the table's batch.
    """

    features: str
    tokens: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Measured times of one model on one target.

    Attributes:
        target: As of the manifest, e.g. `onnx`, `cuda`.
        device: The machine in words.
        precision: fp32, fp16 or bf16.
        batch: Images a call B; all times are of the whole batch.
        model: Name of the model profile.
        versions: Of what ran, by package.
        condition_ms: Text conditioning.
        decoder_ms: VAE decoder.
        layers: Measured points.
        scales: One entry a scale and number of rows.
        notes: How it was measured; nothing in it changes a prediction.
        decisions: Measured points of picking a rung; without any, schedules with rungs have no price.
    """

    target: str
    device: str
    precision: str
    batch: int
    model: str
    versions: dict[str, str]
    condition_ms: float
    decoder_ms: float
    layers: tuple[LayerTime, ...]
    scales: tuple[ScaleTime, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    decisions: tuple[DecisionTime, ...] = ()

    def __post_init__(self) -> None:
        for name in ENTRIES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.batch, int) or self.batch < 1:
            raise CostError(f"batch must be a whole number >= 1, got {self.batch!r}")
        for name, entries, keys in (
            ("layers", self.layers, ("scale", "rows", "tokens", "past")),
            ("scales", self.scales, ("scale", "rows")),
            ("decisions", self.decisions, ("features", "tokens")),
        ):
            points = [tuple(getattr(entry, key) for key in keys) for entry in entries]
            if twice := [point for point, count in Counter(points).items() if count > 1]:
                raise CostError(f"{name}: {', '.join(keys)} {twice[0]} stands there twice")
        times = [self.condition_ms, self.decoder_ms]
        times += [entry.ms for entries in (self.layers, self.scales, self.decisions) for entry in entries]
        if not all(isinstance(ms, (int, float)) and math.isfinite(ms) for ms in times):
            raise CostError("a time is no finite number of milliseconds; measure again")

    @property
    def fixed_ms(self) -> float:
        """What every schedule pays: conditioning and decoder."""
        return self.condition_ms + self.decoder_ms

    def predict(self, schedule: Schedule) -> float:
        """Milliseconds of one batch, text features to pixels; of a schedule with rungs, for images of the slowest.

        Raises:
            CostError: The schedule is of another model, or asks for a point that was not measured.
        """
        if schedule.model != self.model:
            raise CostError(f"the cost table is of model {self.model}, the schedule of {schedule.model}; measure that model")
        slowest = max(sum(self.scale_ms(plan) for plan in plan_scales(path)) for path in schedule.paths)
        return self.fixed_ms + slowest + self.picking_ms(schedule)

    def picking_ms(self, schedule: Schedule) -> float:
        """Milliseconds that picking a rung takes; 0 for a schedule without rungs.

        Raises:
            CostError: It was not measured.
        """
        if schedule.decision is None:
            return 0.0
        sizes = [rule.size for rule in schedule.scales]
        return self.decision_ms(schedule.decision.features, tokens_through(sizes, schedule.decision.scale))

    def decision_ms(self, features: str, tokens: int) -> float:
        """Milliseconds of picking by some features after so many tokens: linear between measured points, level beyond them.

        Raises:
            CostError: None was measured.
        """
        points = sorted((entry.tokens, entry.ms) for entry in self.decisions if entry.features == features)
        if not points:
            raise CostError(f"{self._name}: picking a rung by {features} was not measured; measure the table anew")
        return float(np.interp(tokens, [at for at, _ in points], [ms for _, ms in points]))

    def scale_ms(self, plan: ScalePlan) -> float:
        """Milliseconds of one scale.

        Raises:
            CostError: A point that was not measured.
        """
        beside = self._beside.get((plan.scale, plan.rows))
        if beside is None:
            raise CostError(f"{self._name}: scale {plan.scale} with {plan.rows} rows an image was not measured; measure it")
        return beside + sum(self.layer_ms(plan.scale, plan.rows, plan.kept[n], plan.past[n]) for n in plan.layers)

    def layer_ms(self, scale: int, rows: int, tokens: int, past: int) -> float:
        """Milliseconds of one layer.

        Between measured points it is linear, first in tokens, then in cached keys. Fewer cached keys than were measured cost
        what the fewest measured ones do, and so do fewer tokens where at least two numbers of them were measured: both err to
        the slow side. Anything else beyond the points is an error.

        Raises:
            CostError: The point lies outside what was measured; the message names it.
        """
        curves = self._curves.get((scale, rows), {})
        at = [
            (keys, float(np.interp(tokens, curve[0], curve[1])))
            for keys, curve in sorted(curves.items())
            if curve[0][0] <= tokens <= curve[0][-1]
        ] or [(keys, curve[1][0]) for keys, curve in sorted(curves.items()) if tokens < curve[0][0] and len(curve[0]) > 1]
        if not at or past > at[-1][0]:
            raise CostError(
                f"{self._name}: no measured point covers scale {scale}, {rows} rows an image, {tokens} tokens, {past} cached "
                f"keys; measured are {_ranges(curves)}; measure that point too"
            )
        return float(np.interp(past, [keys for keys, _ in at], [ms for _, ms in at]))

    @cached_property
    def _curves(self) -> dict[tuple[int, int], dict[int, Curve]]:
        """Milliseconds of a layer over tokens, by (scale, rows) and cached keys."""
        points: dict[tuple[int, int], dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for entry in self.layers:
            points[entry.scale, entry.rows][entry.past].append((entry.tokens, entry.ms))
        return {
            key: {
                past: (tuple(tokens for tokens, _ in sorted(found)), tuple(ms for _, ms in sorted(found)))
                for past, found in by_past.items()
            }
            for key, by_past in points.items()
        }

    @cached_property
    def _beside(self) -> dict[tuple[int, int], float]:
        return {(entry.scale, entry.rows): entry.ms for entry in self.scales}

    @property
    def _name(self) -> str:
        return f"cost table of {self.model} on {self.target}"

    def to_json(self) -> bytes:
        """Deterministic JSON, as it stands in the file."""
        return (json.dumps({"format": 1, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read JSON; every problem is a CostError that names the file and the place."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as problem:
            raise CostError(f"{path}: no such cost table; `python -m toprovar.benchmarks.onnx_costs` measures one") from problem
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
            raise CostError(f"{path}: is no cost table ({problem}); measure one again") from problem
        if not isinstance(data, dict) or data.pop("format", None) != 1:
            raise CostError(f"{path}: is of another format; this version reads cost tables of format 1")
        # tables of versions without rungs have no decisions
        data.setdefault("decisions", [])
        for name, kind in ENTRIES.items():
            if not isinstance(data.get(name), list):
                raise CostError(f"{path.name}: {name} must be a list, got {type(data.get(name)).__name__}")
            data[name] = tuple(build(kind, e, f"{path.name}: {name}[{i}]", CostError) for i, e in enumerate(data[name]))
        return build(cls, data, path.name, CostError)


ENTRIES = {"layers": LayerTime, "scales": ScaleTime, "decisions": DecisionTime}
"""Lists of a table, and what stands in them."""


def _ranges(curves: dict[int, Curve]) -> str:
    """What was measured, in words."""
    if not curves:
        return "none"
    return "; ".join(f"{c[0][0]} to {c[0][-1]} tokens at {past} cached keys" for past, c in sorted(curves.items()))
