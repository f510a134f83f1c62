"""The engine on ONNX Runtime: for each scale, run one graph; the state stays in ONNX Runtime's own tensors."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..profiles.errors import BundleError, ToprovarError
from ..profiles.manifest import OUTPUT_SUFFIX, EngineManifest, Graph
from . import loop
from .file_check import Problems
from .loop import FloatArray, Images
from .preflight import preflight
from .rungs import walk_rungs


class Engine(loop.Engine):
    """A verified bundle with its graphs loaded.

    Args:
        folder: The bundle.
        threads: Threads of every graph; None takes all cores this process may use.
        checked: Of `begin_file_check` for the bundle; None checks its files now.

    Raises:
        BundleError: The bundle is incomplete, corrupted, foreign, or its parts contradict each other.
    """

    def __init__(self, folder: Path, threads: int | None = None, checked: Problems | None = None) -> None:
        manifest = EngineManifest.load(folder)
        preflight(folder, manifest, checked=checked)
        super().__init__(folder, manifest)
        self._options = session_options(threads)
        self._sessions = {graph.file: open_session(folder / graph.file, self._options) for graph in manifest.graphs}
        self._types = {file: input_types(session) for file, session in self._sessions.items()}

    def draw(self, request: dict[str, NDArray[Any]], batch: int) -> Images:
        """Run every graph in order."""
        run = _Run(self)
        if self.schedule.decision is not None:
            pixels, picked = walk_rungs(self.manifest, self.schedule, batch, request, run)
            return Images(pixels.astype(np.float32, copy=False), run.milliseconds, picked)
        image = loop.walk(self.manifest, self.schedule.guided, batch, request, run)
        return Images(run.array(image).astype(np.float32, copy=False), run.milliseconds)

    def words(self, ids: NDArray[np.int64]) -> FloatArray:
        """Run the bundled text encoder."""
        assert self.manifest.words is not None, "a bundle with a word encoder holds its graph"
        found: FloatArray = self.run_graph(self.manifest.words, {"ids": ids})["text"].numpy().astype(np.float32, copy=False)
        return found

    def run_graph(self, graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
        """Run one graph on ONNX Runtime tensors, or arrays, which are cast to what it takes; returns tensors by name."""
        import onnxruntime as ort

        types, make = self._types[graph.file], ort.OrtValue.ortvalue_from_numpy
        values = {
            name: make(value.astype(types[name], copy=False)) if isinstance(value, np.ndarray) else value
            for name, value in feeds.items()
        }
        outputs = self._sessions[graph.file].run_with_ort_values(list(graph.outputs), values)
        return {name.removesuffix(OUTPUT_SUFFIX): value for name, value in zip(graph.outputs, outputs, strict=True)}


class _Run:
    """Runs the graphs of one request and keeps their times."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.milliseconds = engine, dict[str, float]()

    def run(self, name: str, graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        outputs = self.engine.run_graph(graph, feeds)
        self.milliseconds[name] = (time.perf_counter() - start) * 1000
        return outputs

    def narrow(self, value: Any, batch: int) -> Any:
        return np.ascontiguousarray(self.array(value)[:batch])

    def array(self, value: Any) -> NDArray[Any]:
        """A tensor of the state as an array."""
        return value if isinstance(value, np.ndarray) else value.numpy()


def open_session(path: Path, options: Any) -> Any:
    """One graph, ready to run on the CPU."""
    import onnxruntime as ort

    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200]
        raise BundleError(f"{path}: ONNX Runtime refuses it ({reason})") from problem


def input_types(session: Any) -> dict[str, type[np.generic]]:
    """NumPy's type of every input of a graph; only the fp16 twin of a plan takes other floats than fp32."""
    known: dict[str, type[np.generic]] = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int64)": np.int64,
    }
    return {value.name: known[value.type] for value in session.get_inputs()}


def session_options(threads: int | None) -> Any:
    """Options of every graph; None threads are all cores this process may use."""
    try:
        import onnxruntime as ort
    except ImportError as problem:
        raise ToprovarError("the onnx target needs onnxruntime; run `pip install onnxruntime`") from problem
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # each graph has threads of its own, and those of the last one must not spin while the next one runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
