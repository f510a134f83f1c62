"""One request shape, planned once: contexts, buffers, addresses and CUDA graphs; after that a request copies in and runs.

Three things to keep in sight. Static buffers: each tensor has the block that `planner` gave it. One warm run before the
capture. One block of scratch memory for all contexts, because they never run at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .device import Arena, Device
from .planner import Planner, Rows, Source, Step, Value, Walk, check_types
from .plans import Plan

if TYPE_CHECKING:
    from torch import Tensor

Launch = Callable[[], None]
log = logging.getLogger(__name__)


class Program:
    """A sequence of plans bound to memory, for requests of one shape.

    Args:
        name: Of its time, where one CUDA graph holds all of it.
        walk: Walks the graphs.
        request: A request of the shape; what no graph reads is left alone.
        plans: By file.
        weights: By name, on the device.
        arena: Memory; shared with other programs, so one runs at a time.
        device: Where it runs.
        place: Put before the names of its blocks; a program of another place leaves its results alone.

    Attributes:
        results: By name; they last until a program of the same place runs.
    """

    def __init__(
        self,
        name: str,
        walk: Walk,
        request: Mapping[str, Source],
        plans: Mapping[str, Plan],
        weights: Mapping[str, Tensor],
        arena: Arena,
        device: Device,
        place: str = "",
    ) -> None:
        self.name, self.device = name, device
        planner = Planner(plans)
        results = walk({key: Value(key, tuple(source.shape)) for key, source in request.items()}, planner)
        self.steps = planner.steps
        self._bind(arena, place, weights)
        check_types(planner, request)
        self._inputs = {key: self._tensor(value) for key, value in planner.inputs.items()}
        self.results = {key: self._tensor(value) for key, value in results.items()}
        self._launches: list[tuple[str, Launch]] = []

    def _bind(self, arena: Arena, place: str, weights: Mapping[str, Tensor]) -> None:
        sizes: dict[str, int] = {}
        for value in (value for step in self.steps for value in step.values.values()):
            sizes[value.block] = max(value.nbytes, sizes.get(value.block, 0))
        self._blocks = {block: arena.take(place + block, nbytes) for block, nbytes in sizes.items()}
        self._scratch = arena.take("scratch", max(step.context.scratch_bytes for step in self.steps))
        for step in self.steps:
            fed = {name: weights[tensor].data_ptr() for name, tensor in step.context.plan.graph.weights.items()}
            state = {name: self._blocks[value.block].data_ptr() for name, value in step.values.items()}
            step.context.bind({**fed, **state}, self._scratch.data_ptr(), len(self._scratch))

    def _tensor(self, value: Value) -> Tensor:
        return self._blocks[value.block][: value.nbytes].view(value.dtype).view(value.shape)

    def run(self, request: Mapping[str, Source]) -> dict[str, float]:
        """Copy a request in, run it, wait for it.

        Returns:
            Milliseconds by name: the program's own where a CUDA graph holds everything, else one a plan.
        """
        with self.device.stream():
            for key, tensor in self._inputs.items():
                _fill(tensor, request[key])
            if not self._launches:
                self._launches = self._capture()
            marks = [self.device.mark()]
            for _, launch in self._launches:
                launch()
                marks.append(self.device.mark())
            self.device.synchronize()
        spans = zip(self._launches, marks, marks[1:], strict=False)
        return {name: self.device.milliseconds(first, second) for (name, _), first, second in spans}

    def _capture(self) -> list[tuple[str, Launch]]:
        """One CUDA graph for everything, else one a plan, else, for plans that refuse, the plain call."""
        self._enqueue()
        self.device.synchronize()
        handle = self.device.handle
        free = [step.context.capturable(handle) for step in self.steps]
        whole = self.device.capture(self._enqueue) if all(free) else None
        if whole is not None:
            return [(self.name, whole)]
        launches, plain = [], []
        for step, may in zip(self.steps, free, strict=True):

            def enqueue(step: Step = step) -> None:
                step.context.enqueue(handle)

            graph = self.device.capture(enqueue) if may else None
            launches.append((step.name, enqueue if graph is None else graph))
            plain += [step.name] if graph is None else []
        log.warning("%s: no CUDA graph of it as a whole; plans that run without one: %s", self.name, ", ".join(plain) or "none")
        return launches

    def _enqueue(self) -> None:
        for step in self.steps:
            step.context.enqueue(self.device.handle)


def _fill(tensor: Tensor, source: Source) -> None:
    """Copy a source into an input; of rows as many as its first reader takes, without guidance the first."""
    import torch

    if isinstance(source, Rows):
        torch.index_select(source.tensor, 0, source.index[: len(tensor)], out=tensor)
    else:
        tensor.copy_(torch.from_numpy(source))
