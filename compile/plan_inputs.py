"""The ONNX graph that a plan is built from: its weights are inputs, so that all plans read one copy of them.

Small constants stay inside. What the parsers of TensorRT need at build time as a constant, such as the axes of a reduction,
is folded; the exporter leaves it as a chain of nodes, which ONNX Runtime folds by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..plugins.flash_attention_entropy import onnx as fae
from . import attention
from .weight_store import Exported


@dataclass(frozen=True, slots=True)
class PlanModel:
    """What a plan is built from.

    Attributes:
        serialized: ONNX, without any external data.
        inputs: Shape of every input of the state; a free dimension is its name, as `batch`, `2*batch`, `text`.
        weights: Weight inputs and the tensors of the store that feed them.
    """

    serialized: bytes
    inputs: dict[str, tuple[int | str, ...]]
    weights: dict[str, str]


def plan_model(exported: Exported, plugins: bool, operator: bool = False) -> PlanModel:
    """Turn external initializers into inputs.

    Args:
        exported: Is left as it is.
        plugins: Whether the attention nodes with entropy keep what makes TensorRT take the plugin; else their function's
            body runs.
        operator: Whether attention without entropy becomes the operator `Attention`; else its function's body runs.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(exported.proto)
    graph = proto.graph
    inputs = {value.name: _shape(value) for value in graph.input}
    read = {name for node in graph.node for name in node.input}
    weights = {name: stored for name, stored in exported.weights.items() if name in read}
    clash = sorted(weights.keys() & inputs.keys())
    assert not clash, clash
    kept = [tensor for tensor in graph.initializer if tensor.name not in exported.weights]
    for tensor in graph.initializer:
        if tensor.name in weights:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not plugins:
        _forget_plugins(graph)
    if operator:
        attention.use_operator(proto)
    return PlanModel(_folded(proto).SerializeToString(deterministic=True), inputs, weights)


def free_names(shape: tuple[int | str, ...]) -> set[str]:
    """Names of the free dimensions of a shape, without their factor."""
    return {_split(size)[1] for size in shape if isinstance(size, str)}


def sizes(shape: tuple[int | str, ...], values: dict[str, int]) -> tuple[int, ...]:
    """A shape with its free dimensions filled in: `("2*batch", "text", 8)`, batch 3, text 5 -> `(6, 5, 8)`."""
    return tuple(size if isinstance(size, int) else _split(size)[0] * values[_split(size)[1]] for size in shape)


def _split(name: str) -> tuple[int, str]:
    factor, star, symbol = name.rpartition("*")
    return (int(factor) if star else 1), symbol


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _forget_plugins(graph: Any) -> None:
    """Only the function is left to a parser then, whatever plugins it knows."""
    for node in graph.node:
        if node.domain == fae.DOMAIN:
            kept = [attribute for attribute in node.attribute if attribute.name not in fae.PLUGIN_ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)


def _folded(proto: Any) -> Any:
    """The model with constant expressions evaluated."""
    import onnx_ir as ir
    from onnxscript import optimizer

    model = ir.from_proto(proto)
    optimizer.fold_constants(model, onnx_shape_inference=False)
    return ir.to_proto(model)
