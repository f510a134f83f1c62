"""A stand-in for TensorRT's run time, on host memory: it knows addresses only, and keeps account of every call.

A plan here names an ONNX graph of the same bundle. A context reads weights and inputs from the addresses it was given, runs
the graph in ONNX Runtime, and writes the outputs to their addresses; so a wrong buffer, order or address gives a wrong image.
The classes have the methods that the run time calls and no others; tests hold them to NVIDIA's own bindings.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from toprovar.runtime.engine import session_options

DataType = enum.Enum("DataType", ("FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL", "UINT8"))
TensorIOMode = enum.Enum("TensorIOMode", ("NONE", "INPUT", "OUTPUT"))
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ("STATIC", "USER_MANAGED"))
TYPES = {1: DataType.FLOAT, 7: DataType.INT64, 10: DataType.HALF}
MOST_ROWS = 8
STREAM = 7
"""What the device calls its stream."""


class Logger:
    WARNING = 2

    def __init__(self, min_severity: int) -> None:
        self.min_severity = min_severity


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}
        self._scratch = (0, 0)
        self._session: Any = None
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return shape[0] <= MOST_ROWS

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine.inputs if name not in self._shapes]
        if not missing:
            ones = {
                name: np.ones(self._shapes[name], onnx.helper.tensor_dtype_to_np_dtype(kind))
                for name, kind in self._engine.inputs.items()
            }
            session = ort.InferenceSession(str(self._engine.path), session_options(1))
            found = session.run(list(self._engine.outputs), ones)
            self._outputs = {name: value.shape for name, value in zip(self._engine.outputs, found, strict=True)}
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._outputs[name]

    def update_device_memory_size_for_shapes(self) -> int:
        return 100 * len(self._shapes)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self._scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name not in self.addresses, f"{name}: an address is set once"
        self.addresses[name] = memory
        return name in self._engine.names

    def execute_async_v3(self, stream_handle: int) -> bool:
        trt = self._engine.trt
        assert stream_handle == STREAM
        if trt.captured is None:
            self._run()
        elif self._engine.path.name in trt.not_capturable:
            return False
        else:
            trt.captured.append(self._run)
        return True

    def _run(self) -> None:
        engine = self._engine
        engine.trt.ran.append(engine.path.name)
        self._check_overlap()
        if self._session is None:
            self._session = engine.session({name: self._read(name, *engine.weights[name]) for name in engine.weights})
        feeds = {name: self._read(name, kind, self._shapes[name]) for name, kind in engine.inputs.items()}
        outputs = self._session.run(list(engine.outputs), feeds)
        # what a kernel leaves in its scratch memory is nobody's
        ctypes.memset(self._scratch[0], 0xFF, self._scratch[1])
        for name, value in zip(engine.outputs, outputs, strict=True):
            raw = np.ascontiguousarray(value).tobytes()
            ctypes.memmove(self.addresses[name], raw, len(raw))

    def _read(self, name: str, kind: int, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        raw = ctypes.string_at(self.addresses[name], math.prod(shape) * dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(shape)

    def _check_overlap(self) -> None:
        """A graph may not write where it reads."""
        engine, spans = self._engine, [(*self._scratch, "scratch")]
        shapes = {**self._shapes, **self._outputs, **{name: shape for name, (_, shape) in engine.weights.items()}}
        kinds = {**engine.inputs, **engine.outputs, **{name: kind for name, (kind, _) in engine.weights.items()}}
        for name, shape in shapes.items():
            itemsize = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name])).itemsize
            spans.append((self.addresses[name], math.prod(shape) * itemsize, name))
        read = {*engine.weights}
        for (start, size, name), (other, _, second) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert start + size <= other or {name, second} <= read, f"{name} overlaps {second}"


class RtxContext(Context):
    """`IExecutionContext` of TensorRT-RTX, which tells beforehand what it would refuse."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == STREAM
        return self._engine.path.name not in self._engine.trt.not_capturable


class CudaEngine:
    """`ICudaEngine`."""

    def __init__(self, trt: RecordingTensorRT, path: Path) -> None:
        self.trt, self.path = trt, path
        self._model = onnx.load(path, load_external_data=False)
        graph = self._model.graph
        self.weights = {i.name: (i.data_type, tuple(i.dims)) for i in graph.initializer if i.external_data}
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
        self.names = (*self.inputs, *self.weights, *self.outputs)

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {**self.inputs, **self.outputs}
        return TYPES[kinds[name] if name in kinds else self.weights[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name][1]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.trt.contexts.append((RtxContext if self.trt.rtx else Context)(self))
        return self.trt.contexts[-1]

    def session(self, weights: dict[str, Any]) -> Any:
        """The graph with these weights, loaded as the onnx target loads it."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for initializer in model.graph.initializer:
            if initializer.name in weights:
                initializer.CopyFrom(onnx.numpy_helper.from_array(weights[initializer.name], initializer.name))
        return ort.InferenceSession(model.SerializeToString(), session_options(1))


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self._trt = logger.trt  # type: ignore[attr-defined]

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        if not serialized_engine.startswith(b"{"):
            return None
        return CudaEngine(self._trt, Path(json.loads(serialized_engine)["onnx"]))


class RecordingTensorRT:
    """The module.

    Attributes:
        ran: File names of the graphs that ran, in order.
        contexts: All that were made.
        captured: What a capture has recorded so far, or None outside one.
        not_capturable: Files of graphs that refuse to be captured.
    """

    DataType, TensorIOMode, Runtime = DataType, TensorIOMode, Runtime
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, rtx: bool = False) -> None:
        self.rtx = rtx
        self.ran: list[str] = []
        self.contexts: list[Context] = []
        self.captured: list[Callable[[], None]] | None = None
        self.not_capturable: set[str] = set()
        trt = self

        class BoundLogger(Logger):
            def __init__(self, min_severity: int) -> None:
                super().__init__(min_severity)
                self.trt = trt

        self.Logger = BoundLogger
