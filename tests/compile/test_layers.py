"""Layers exported once and placed as often as they run: the graph computes what tracing every layer gives, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from small_model import small_model
from toprovar.compile import graphs
from toprovar.compile.export_cache import reusing_graphs
from toprovar.compile.layer_calls import LayerCalls
from toprovar.compile.weight_store import Exported, WeightStore, place
from toprovar.models.family import build_steps
from toprovar.models.step import ScaleStep
from toprovar.profiles.baselines import dense
from toprovar.profiles.manifest import WEIGHTS

LAYERS, SCALE = 3, 1


@pytest.fixture(scope="module")
def store() -> WeightStore:
    store = WeightStore()
    store.register("transformer", small_model(LAYERS).transformer)
    return store


@pytest.fixture(scope="module")
def step() -> ScaleStep:
    """A dense scale with keys of the one before."""
    model = small_model(LAYERS)
    return build_steps(model, dense(model.profile))[SCALE]


@pytest.fixture(scope="module")
def traced() -> list[str]:
    """Names of the modules that `exported` traces."""
    return []


@pytest.fixture(scope="module")
def exported(step: ScaleStep, store: WeightStore, traced: list[str]) -> Exported:
    def counted(module: Any, *others: Any) -> Any:
        traced.append(type(module).__name__)
        return trace(module, *others)

    trace = graphs._traced
    with pytest.MonkeyPatch.context() as monkeypatch, reusing_graphs({}):
        monkeypatch.setattr(graphs, "_traced", counted)
        return graphs.export_scale(step, store)


def test_a_layer_is_traced_once(exported: Exported, traced: list[str]) -> None:
    assert traced == ["ScaleStep", "_Method"]
    domains = {node.domain for node in exported.proto.graph.node}
    assert domains == {"", "toprovar"}
    assert {entry.domain for entry in exported.proto.opset_import} == domains
    layers = {name.split(".")[1] for name in exported.weights if name.startswith("layers.")}
    assert layers == {"0", "1", "2"}
    blocks = {stored for name, stored in exported.weights.items() if name.endswith(".ffn.fc1.weight")}
    assert len(blocks) == LAYERS
    assert all(stored.startswith("transformer.") for stored in exported.weights.values() if "ffn" in stored)


def test_the_graph_computes_what_tracing_every_layer_gives(
    exported: Exported, step: ScaleStep, store: WeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerCalls, "recorded", lambda calls: nullcontext())
    whole = graphs.export_scale(step, store)
    assert whole.inputs == exported.inputs
    assert whole.outputs == exported.outputs
    layout = store.save(tmp_path / WEIGHTS)
    given = _given(step)
    found, expected = (_run(one, layout, tmp_path, given) for one in (exported, whole))
    for name, ours, theirs in zip(whole.outputs, found, expected, strict=True):
        assert np.array_equal(ours, theirs), name


def _given(step: ScaleStep) -> dict[str, NDArray[np.float32]]:
    """Numbers for every input: two images, seven words."""
    sizes = {"B": 2, "R": 2 * step.plan.rows, "T": 7}
    stream = np.random.default_rng(0)
    shapes = {name: [sizes.get(size, size) for size in step.input_shape(name)] for name in step.input_names()}
    return {name: stream.random(shape, dtype=np.float32) for name, shape in shapes.items()}


def _run(
    exported: Exported, layout: dict[str, tuple[int, int]], folder: Path, given: dict[str, NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    place(exported.proto, exported.weights, layout)
    path = folder / "scale.onnx"
    path.write_bytes(exported.proto.SerializeToString())
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(exported.outputs, given)
