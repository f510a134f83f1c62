"""What layers compute, exported once for all calls that are alike (`layer_calls`), in the places of the calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from .export_cache import kept_once
from .layer_calls import DOMAIN, LAYER, Call, Kind, LayerCalls, Shape
from .weight_store import WeightStore, initializer

_MOST = 1 << 20
"""Bound of every size that varies."""
Trace = Callable[[nn.Module, dict[str, Any], dict[str, Any], Sequence[str], None, WeightStore], tuple[Any, dict[str, str]]]
"""Of a module, an example of its arguments, their varying sizes, the names of its inputs and a store: its `onnx.ModelProto`
and the store's names of its large weights."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a kind of call computes: an `onnx.FunctionProto` of the call's tensors and then of weights of the block."""

    function: Any
    weights: tuple[str, ...]


class _Method(nn.Module):
    """A method of a block as a module, of tensors alone."""

    def __init__(self, block: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.block, self.kind = block, kind

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Shape) else leaf for leaf in self.kind.leaves]
        found = getattr(self.block, self.kind.method)(*pytree.tree_unflatten(leaves, self.kind.arguments))
        return (found,) if isinstance(found, Tensor) else tuple(one for one in found if one is not None)


def write_out(proto: Any, calls: LayerCalls, store: WeightStore, trace: Trace) -> dict[str, str]:
    """Put the bodies in the places of the calls, in place.

    Args:
        proto: The traced scale, `onnx.ModelProto`.
        calls: Of its blocks.
        store: Of the bundle.
        trace: Exports a body.

    Returns:
        The store's name of each large weight that came into the graph.
    """
    bodies = {
        name: _at_sizes(kept_once(("layer", repr(call.kind)), partial(_body, calls.blocks[first], call.kind, trace)), call)
        for call, (name, first) in calls.found.items()
    }
    weights = _passed(proto, calls, bodies)
    _inline(proto, bodies)
    stored = {}
    for name, tensor in weights.items():
        entry, place = initializer(name, tensor, store)
        proto.graph.initializer.append(entry)
        if place is not None:
            stored[name] = place
    return stored


def _passed(proto: Any, calls: LayerCalls, bodies: Mapping[str, Body]) -> dict[str, Tensor]:
    """Pass each call the weights of its block, by name."""
    weights: dict[str, Tensor] = {}
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            layer = next(attribute.i for attribute in node.attribute if attribute.name == LAYER)
            del node.attribute[:]
            own = calls.blocks[layer].state_dict(keep_vars=True)
            passed = {f"layers.{layer}.{name}": own[name].detach() for name in bodies[node.op_type].weights}
            node.input.extend(passed)
            weights |= passed
    return weights


def _inline(proto: Any, bodies: Mapping[str, Body]) -> None:
    import onnx.inliner

    domains = {entry.domain for entry in proto.opset_import}
    for name, body in bodies.items():
        function = proto.functions.add()
        function.CopyFrom(body.function)
        function.name = name
        proto.opset_import.extend(entry for entry in function.opset_import if entry.domain not in domains)
        domains |= {entry.domain for entry in function.opset_import}
    proto.CopyFrom(onnx.inliner.inline_selected_functions(proto, [(DOMAIN, name) for name in bodies]))
    others = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(others)


def _at_sizes(body: Body, call: Call) -> Body:
    """The body for one number of tokens and of keys: where it asks a tensor for that size, the number stands."""
    from onnx import FunctionProto, helper

    known, shapes = dict(call.sizes), [leaf for leaf in call.kind.leaves if isinstance(leaf, Shape)]
    function = FunctionProto()
    function.CopyFrom(body.function)
    inputs = dict(zip(function.input, shapes, strict=False))
    for node in function.node:
        if node.op_type == "Shape" and node.input[0] in inputs:
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            sizes = [known.get(size, size) for size in inputs[node.input[0]].sizes[bounds.get("start") : bounds.get("end")]]
            if all(isinstance(size, int) for size in sizes):
                node.CopyFrom(helper.make_node("Constant", [], node.output, node.name, value_ints=sizes))
    return Body(function, body.weights)


def _body(block: nn.Module, kind: Kind, trace: Trace) -> Body:
    """Export a method of a block."""
    from onnx import helper

    shapes = [leaf for leaf in kind.leaves if isinstance(leaf, Shape)]
    names = sorted({size for shape in shapes for size in shape.sizes if isinstance(size, str)})
    symbols = {name: Dim(name, min=1, max=_MOST) for name in names}
    # sizes that differ are not taken for one
    example = {name: 2 + 3 * place for place, name in enumerate(names)}
    tensors = [
        torch.empty([example[size] if isinstance(size, str) else size for size in shape.sizes], dtype=shape.dtype)
        for shape in shapes
    ]
    varying = [{axis: symbols[size] for axis, size in enumerate(shape.sizes) if isinstance(size, str)} for shape in shapes]
    inputs = [f"x{place}" for place in range(len(tensors))]
    store, owner = WeightStore(), "block"
    store.register(owner, block)
    proto, stored = trace(_Method(block, kind), {"tensors": tensors}, {"tensors": varying}, inputs, None, store)
    weights = [tensor.name for tensor in proto.graph.initializer if tensor.name.startswith(f"{owner}.")]
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=_whole(tensor, stored, store))
        for tensor in proto.graph.initializer
        if tensor.name not in weights
    ]
    function = helper.make_function(
        DOMAIN,
        kind.method,
        [*inputs, *weights],
        [value.name for value in proto.graph.output],
        [*constants, *proto.graph.node],
        list(proto.opset_import),
    )
    return Body(function, tuple(name.removeprefix(f"{owner}.") for name in weights))


def _whole(tensor: Any, stored: dict[str, str], store: WeightStore) -> Any:
    """An entry of a graph with its numbers in it."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor

    return ir.to_proto(TorchTensor(store.tensors[stored[tensor.name]])) if tensor.name in stored else tensor
