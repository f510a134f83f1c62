"""Plans of TensorRT or TensorRT-RTX: load one, ask it for names and types, make a context, give it addresses.

Both flavours have the same Python API as far as it is used here. A plan with the attention plugin carries its kernel, so
neither the plugin's Python code nor Triton is needed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..profiles.errors import BundleError
from ..profiles.manifest import Graph
from .device import EnqueueError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TORCH_NAMES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool",
    "UINT8": "uint8",
}  # fmt: skip


class Library:
    """TensorRT of one flavour; its logger must outlive every plan.

    Args:
        flavour: `tensorrt` or `tensorrt-rtx`.
        module: Its Python module; None imports it.
    """

    def __init__(self, flavour: str, module: Any = None) -> None:
        self.module = importlib.import_module(MODULES[flavour]) if module is None else module
        self._logger = self.module.Logger(self.module.Logger.WARNING)
        self._runtime = self.module.Runtime(self._logger)

    def load(self, folder: Path, graph: Graph) -> Plan:
        """Deserialise the plan of one graph.

        Raises:
            BundleError: The library refuses the plan, or it has tensors that the manifest does not name.
        """
        path = folder / graph.plan
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(f"{path}: TensorRT refuses the plan, its log above says why; build the bundle on this machine")
        return Plan(self.module, engine, graph, path)


class Plan:
    """One deserialised plan.

    Attributes:
        graph: Its place in the manifest.
        names: Of its inputs and outputs, in the plan's order; an input that the graph never reads may be missing.
    """

    def __init__(self, module: Any, engine: Any, graph: Graph, path: Path) -> None:
        self.module, self.engine, self.graph, self.path = module, engine, graph, path
        self.names = tuple(engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        inputs = {name for name in self.names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT}
        unknown = sorted(inputs - {*graph.inputs, *graph.weights}) + sorted({*self.names} - inputs - {*graph.outputs})
        absent = sorted({*graph.outputs} - {*self.names})
        if unknown or absent:
            raise BundleError(f"{path}: has tensors {unknown}, lacks {absent} of the manifest; build the bundle again")

    def dtype(self, name: str) -> Any:
        """The torch dtype of one tensor."""
        import torch

        found = self.engine.get_tensor_dtype(name).name
        if found not in TORCH_NAMES:
            raise BundleError(f"{self.path}: {name} is {found}, expected {', '.join(TORCH_NAMES)}; build the bundle again")
        return getattr(torch, TORCH_NAMES[found])

    def context(self, shapes: dict[str, tuple[int, ...]]) -> Context:
        """A context for one set of input shapes.

        One a shape: a CUDA graph is bound to the context it was captured from, and TensorRT loads an ahead-of-time
        plugin's kernel again whenever a context changes its shape (NVIDIA/TensorRT issue 4849).
        """
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(strategy)
        if context is None:
            raise BundleError(f"{self.path}: TensorRT makes no context, its log above says why; is the GPU's memory full?")
        for name, shape in shapes.items():
            if name in self.names and not context.set_input_shape(name, shape):
                asked = "x".join(str(size) for size in shape)
                raise BundleError(f"{self.path}: {name} of {asked} is outside what the plan was built for; build it larger")
        missing = context.infer_shapes()
        if missing:
            raise BundleError(f"{self.path}: the manifest gives no shape for {sorted(missing)}; build the bundle again")
        return Context(self, context)


class Context:
    """One plan for one set of shapes."""

    def __init__(self, plan: Plan, context: Any) -> None:
        self.plan, self._context = plan, context
        self.scratch_bytes = int(context.update_device_memory_size_for_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one output; known once all input shapes are."""
        found = tuple(self._context.get_tensor_shape(name))
        if min(found, default=0) < 0:
            raise BundleError(f"{self.plan.path}: {name} has no fixed shape, got {list(found)}; build the bundle again")
        return found

    def bind(self, addresses: dict[str, int], scratch: int, scratch_bytes: int) -> None:
        """Give every tensor its address, and the context its memory; they stay for the context's life."""
        self._context.set_device_memory(scratch, scratch_bytes)
        for name in self.plan.names:
            if name not in addresses or not self._context.set_tensor_address(name, addresses[name]):
                raise BundleError(f"{self.plan.path}: {name} got no address; build the bundle again")

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph may be tried; TensorRT-RTX tells, TensorRT shows it by trying."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def enqueue(self, stream: int) -> None:
        """Queue the plan.

        Raises:
            EnqueueError: TensorRT refuses, as it does where an operation cannot be captured.
        """
        if not self._context.execute_async_v3(stream):
            raise EnqueueError(f"{self.plan.path}: TensorRT would not run the plan, its log above says why")
