"""The engine on TensorRT or TensorRT-RTX plans: weights once on the GPU, one program for each request shape."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..profiles.errors import BundleError, ToprovarError
from ..profiles.manifest import WEIGHTS, EngineManifest
from . import loop
from .device import Arena, CudaDevice, Device, EnqueueError
from .file_check import Problems
from .loop import FloatArray, Images
from .machine import Machine
from .plan_rungs import draw_rungs, host
from .planner import Source, Walk
from .plans import Library, Plan
from .preflight import preflight
from .program import Program

if TYPE_CHECKING:
    from torch import Tensor

TEXT_STEP = 32
"""Text is padded to a multiple of it, masked, so that prompts of like length share one CUDA graph."""
PROGRAMS = 8
"""Request shapes kept ready, and of every rung as many; the one that was not used for longest goes first."""
log = logging.getLogger(__name__)


class TensorRTEngine(loop.Engine):
    """A bundle of plans. For one thread: requests share memory.

    Args:
        folder: The bundle.
        machine: What it must fit; None looks at this machine.
        device: Where it runs; None is the GPU.
        module: TensorRT's Python module; None imports the bundle's flavour.
        threads: CPU threads of a text encoder that is no plan; None takes all cores this process may use.
        checked: Of `begin_file_check` for the bundle; None checks its files now.

    Raises:
        BundleError: The bundle is damaged or does not fit the machine, with every reason.
    """

    def __init__(
        self,
        folder: Path,
        machine: Machine | None = None,
        device: Device | None = None,
        module: Any = None,
        threads: int | None = None,
        checked: Problems | None = None,
    ) -> None:
        manifest = EngineManifest.load(folder)
        for warning in preflight(folder, manifest, machine or Machine.here(), checked):
            log.warning("%s", warning)
        super().__init__(folder, manifest)
        self.device, self._threads = device or CudaDevice(), threads
        # the text encoder may have no plan
        graphs = [graph for graph in manifest.graphs if graph.plan or graph is not manifest.words]
        self._library = Library(str(manifest.engine["flavour"]), module)
        self._plans = {graph.plan: self._library.load(folder, graph) for graph in graphs}
        self._weights = self._upload()
        self._arena = Arena(self.device.name)
        self._programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()

    def _upload(self) -> dict[str, Tensor]:
        """Every tensor that a plan reads, once; the file is mapped and goes to the device tensor by tensor."""
        from safetensors import safe_open

        names = {tensor for plan in self._plans.values() for tensor in plan.graph.weights.values()}
        with safe_open(self.folder / WEIGHTS, framework="pt", device=self.device.name) as file:
            missing = sorted(names - set(file.keys()))
            if missing:
                raise BundleError(f"{self.folder / WEIGHTS}: lacks {missing}; build the bundle again")
            weights = {name: file.get_tensor(name) for name in sorted(names)}
        self.device.synchronize()
        for plan in self._plans.values():
            _check_weights(plan, weights)
        return weights

    def draw(self, request: dict[str, NDArray[Any]], batch: int) -> Images:
        """Run all plans in order, as one CUDA graph where TensorRT allows it; with rungs several, one after the other."""
        self._check_size("max_batch", batch, "images at once; lower --batch")
        request = {**request, "text": self._padded(request["text"])}
        if self.schedule.decision is not None:
            return draw_rungs(self.manifest, self.schedule, batch, request, self._run, self.device)

        def walk(inputs: Mapping[str, Any], runner: Any) -> Any:
            return {"image": loop.walk(self.manifest, self.schedule.guided, batch, inputs, runner)}

        found, milliseconds = self._run("image", walk, request)
        return Images(host(found["image"]), milliseconds)

    def words(self, ids: NDArray[np.int64]) -> FloatArray:
        """Run the bundled text encoder: its plan, or its graph on ONNX Runtime where the bundle has no plan of it."""
        graph = self.manifest.words
        assert graph is not None, "a bundle with a word encoder holds its graph"
        if not graph.plan:
            found: FloatArray = self._words_session.run(list(graph.outputs), {"ids": ids})[0].astype(np.float32)
            return found

        def walk(inputs: Mapping[str, Any], runner: Any) -> Any:
            return runner.run("words", graph, dict(inputs))

        return host(self._run("words", walk, {"ids": ids})[0]["text"])

    @cached_property
    def _words_session(self) -> Any:
        from .engine import open_session, session_options

        assert self.manifest.words is not None
        return open_session(self.folder / self.manifest.words.file, session_options(self._threads))

    def _run(
        self, name: str, walk: Walk, request: Mapping[str, Source], place: str = ""
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Results by name, which last until a program of the same place runs, and milliseconds by name."""
        import torch

        key = (name, *(tuple(source.shape) for source in request.values()))
        try:
            if key not in self._programs:
                memory = (self._plans, self._weights, self._arena, self.device, place)
                self._programs[key] = Program(name, walk, request, *memory)
            self._programs.move_to_end(key)
            if len(self._programs) > PROGRAMS * (1 + len(self.manifest.rungs)):
                self._programs.popitem(last=False)
            return self._programs[key].results, self._programs[key].run(request)
        except torch.OutOfMemoryError as problem:
            raise ToprovarError(f"{self.folder}: the GPU's memory is full ({problem}); lower --batch") from problem
        except EnqueueError as problem:
            raise ToprovarError(f"{problem}; `toprovar doctor --verify-tensorrt` tries a tiny engine") from problem

    def _check_size(self, limit: str, found: int, what: str) -> None:
        most = int(self.manifest.engine[limit])
        if found > most:
            flag = f"--{limit.replace('_', '-')}"
            raise ToprovarError(f"{self.folder}: got {found}, was built for {most} {what} or build with {flag} {found}")

    def _padded(self, text: FloatArray) -> FloatArray:
        """`[R, T, Ct]` with zero vectors behind; lengths mask them. A family of fixed length has padded its text itself."""
        length = text.shape[1]
        self._check_size("max_text", length, "text tokens; shorten the prompt")
        if self.profile.transformer.text_tokens is not None:
            return text
        wanted = min(-(-length // TEXT_STEP) * TEXT_STEP, int(self.manifest.engine["max_text"]))
        return np.pad(text, ((0, 0), (0, wanted - length), (0, 0)))


def _check_weights(plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """A weight of another type or size would be read as garbage."""
    for name, tensor in plan.graph.weights.items():
        if name not in plan.names:
            continue
        found, wanted = weights[tensor], tuple(plan.engine.get_tensor_shape(name))
        if found.dtype != plan.dtype(name) or found.numel() != int(np.prod(wanted)):
            asked = f"{plan.dtype(name)} {list(wanted)}"
            got = f"{found.dtype} {list(found.shape)}"
            raise BundleError(f"{plan.path}: {name} is {asked}, {WEIGHTS} gives {got}; build the bundle again")
