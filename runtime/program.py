"""One request shape, planned once: contexts, buffers, addresses and CUDA graphs; after that a request copies in and runs.

Three things to keep in sight. Static buffers: every tensor of the state has two blocks that its writers take in turn, since
a graph may read a tensor and write its successor. One warm run before the capture. One block of scratch memory for all
contexts, because they never run at the same time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..profiles.errors import BundleError
from ..profiles.manifest import OUTPUT_SUFFIX, Graph
from .device import Arena, Device
from .loop import FloatArray, Runner
from .plans import Context, Plan

if TYPE_CHECKING:
    from torch import Tensor

Launch = Callable[[], None]
log = logging.getLogger(__name__)


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


class Program:
    """A sequence of plans bound to memory, for requests of one shape.

    Args:
        walk: Walks the graphs with a runner and inputs, and returns the value that is the result.
        request: A request of the shape, as of `Engine.request`.
        plans: By file.
        weights: By name, on the device.
        arena: Memory; shared with other programs, so one request runs at a time.
        device: Where it runs.
    """

    def __init__(
        self,
        walk: Callable[[Mapping[str, Value], Runner[Value]], Value],
        request: Mapping[str, NDArray[Any]],
        plans: Mapping[str, Plan],
        weights: Mapping[str, Tensor],
        arena: Arena,
        device: Device,
    ) -> None:
        self.device = device
        planner = Planner(plans)
        result = walk({name: Value(name, array.shape) for name, array in request.items()}, planner)
        self.steps = planner.steps
        self._bind(arena, weights)
        self._inputs = {name: self._tensor(value) for name, value in planner.inputs.items()}
        self._result = self._tensor(result)
        self._launches: list[tuple[str, Launch]] = []

    def _bind(self, arena: Arena, weights: Mapping[str, Tensor]) -> None:
        sizes: dict[str, int] = {}
        for value in (value for step in self.steps for value in step.values.values()):
            sizes[value.block] = max(value.nbytes, sizes.get(value.block, 0))
        self._blocks = {block: arena.take(block, nbytes) for block, nbytes in sizes.items()}
        self._scratch = arena.take("scratch", max(step.context.scratch_bytes for step in self.steps))
        for step in self.steps:
            fed = {name: weights[tensor].data_ptr() for name, tensor in step.context.plan.graph.weights.items()}
            state = {name: self._blocks[value.block].data_ptr() for name, value in step.values.items()}
            step.context.bind({**fed, **state}, self._scratch.data_ptr(), len(self._scratch))

    def _tensor(self, value: Value) -> Tensor:
        return self._blocks[value.block][: value.nbytes].view(value.dtype).view(value.shape)

    def run(self, request: Mapping[str, NDArray[Any]]) -> tuple[FloatArray, dict[str, float]]:
        """Copy a request in and run it.

        Returns:
            The result in fp32 on the host, and milliseconds by name: one `image` where a CUDA graph holds everything.
        """
        import torch

        with self.device.stream():
            for name, tensor in self._inputs.items():
                tensor.copy_(torch.from_numpy(request[name]))
            if not self._launches:
                self._launches = self._capture()
            marks = [self.device.mark()]
            for _, launch in self._launches:
                launch()
                marks.append(self.device.mark())
            pixels: FloatArray = self._result.float().cpu().numpy()
            self.device.synchronize()
        spans = zip(self._launches, marks, marks[1:], strict=False)
        return pixels.copy(), {name: self.device.milliseconds(first, second) for (name, _), first, second in spans}

    def _capture(self) -> list[tuple[str, Launch]]:
        """One CUDA graph for everything, else one a plan, else, for plans that refuse, the plain call."""
        self._enqueue()
        self.device.synchronize()
        handle = self.device.handle
        free = [step.context.capturable(handle) for step in self.steps]
        whole = self.device.capture(self._enqueue) if all(free) else None
        if whole is not None:
            return [("image", whole)]
        launches, plain = [], []
        for step, may in zip(self.steps, free, strict=True):

            def enqueue(step: Step = step) -> None:
                step.context.enqueue(handle)

            graph = self.device.capture(enqueue) if may else None
            launches.append((step.name, enqueue if graph is None else graph))
            plain += [step.name] if graph is None else []
        log.warning("no CUDA graph of the whole image; plans that run without one: %s", ", ".join(plain) or "none")
        return launches

    def _enqueue(self) -> None:
        for step in self.steps:
            step.context.enqueue(self.device.handle)
