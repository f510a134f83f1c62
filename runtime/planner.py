"""A walk without running: which context runs after which, and which block of memory holds each of their tensors.

Every tensor of the state has two blocks that its writers take in turn, since a graph may read a tensor and write its
successor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..profiles.errors import BundleError
from ..profiles.manifest import OUTPUT_SUFFIX, Graph
from .loop import Runner
from .plans import Context, Plan

if TYPE_CHECKING:
    from torch import Tensor

Walk = Callable[[Mapping[str, "Value"], Runner["Value"]], Mapping[str, "Value"]]
"""Walks graphs with a runner, from inputs by name to results by name."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor before it has an address: which block it lies in, its shape, its dtype (of an input: as its reader asks)."""

    block: str
    shape: tuple[int, ...]
    dtype: Any = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a tensor on the device: what one program hands to another.

    Attributes:
        tensor: `[R, ...]`.
        index: `[n]` int64, there too.
    """

    tensor: Tensor
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.tensor.shape[1:])


Source = NDArray[Any] | Rows


@dataclass(frozen=True, slots=True)
class Step:
    """One plan of the sequence with all its tensors but the weights."""

    name: str
    context: Context
    values: dict[str, Value]


class Planner:
    """Walks the graphs without running them; narrowing is a prefix of the same block, so it costs nothing."""

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self.plans = plans
        self.steps: list[Step] = []
        self.inputs: dict[str, Value] = {}
        self._turns: dict[str, int] = {}

    def run(self, name: str, graph: Graph, feeds: dict[str, Value]) -> dict[str, Value]:
        plan = self.plans[graph.plan]
        context = plan.context({key: value.shape for key, value in feeds.items()})
        feeds = {key: self._typed(plan, key, value) for key, value in feeds.items() if key in plan.names}
        outputs = {}
        for key in graph.outputs:
            state = key.removesuffix(OUTPUT_SUFFIX)
            turn = self._turns[state] = 1 - self._turns.get(state, 1)
            outputs[key] = Value(f"{state}/{turn}", context.shape(key), plan.dtype(key))
        self.steps.append(Step(name, context, {**feeds, **outputs}))
        return {key.removesuffix(OUTPUT_SUFFIX): value for key, value in outputs.items()}

    def narrow(self, value: Value, batch: int) -> Value:
        return replace(value, shape=(batch, *value.shape[1:]))

    def _typed(self, plan: Plan, key: str, value: Value) -> Value:
        wanted = plan.dtype(key)
        value = self.inputs.get(value.block, value)
        if value.dtype is None:
            value = self.inputs[value.block] = replace(value, dtype=wanted)
        if value.dtype != wanted:
            raise BundleError(f"{plan.path}: {key} is {wanted}, its writer gives {value.dtype}; build the bundle again")
        return value


def check_types(planner: Planner, request: Mapping[str, Source]) -> None:
    """An array is converted as it is copied in, a tensor of the state must be what its reader takes."""
    for key, value in planner.inputs.items():
        source = request[key]
        if isinstance(source, Rows) and source.tensor.dtype != value.dtype:
            path = next(step.context.plan.path for step in planner.steps if key in step.values)
            raise BundleError(f"{path}: {key} is {value.dtype}, its writer gives {source.tensor.dtype}; build the bundle again")
