"""Attention without entropy: a local function in a graph, the operator `Attention` in a plan.

The exporter spells it out in ten operators that scale the keys and transpose them through reshapes. A function of our own
keeps it one node, as FAE is: ONNX Runtime runs the function's body, of opset 18; for a flavour that knows the operator
(opset 23) the node only changes its name, so that TensorRT sees attention, and need not recognise it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..plugins.flash_attention_entropy.onnx import DOMAIN

# without a mask, with one that is added to the logits, and with one that is true at the keys that are seen
PLAIN, MASKED, CHOSEN = "PlainAttention", "MaskedAttention", "ChosenAttention"
INPUTS = {PLAIN: ("q", "k", "v"), MASKED: ("q", "k", "v", "mask"), CHOSEN: ("q", "k", "v", "mask")}
VERSION = 1
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
OPERATOR, OPERATOR_OPSET = "Attention", 23


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Part of `custom_translation_table` of `torch.onnx.export`: torch's attention becomes a bare node."""
    import onnx_ir as ir
    import torch
    from onnxscript import values

    ops = {name: values.Op(values.Opset(DOMAIN, VERSION), name, _schema(name)) for name in INPUTS}

    def node(
        q: Any,
        k: Any,
        v: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if dropout_p or is_causal or enable_gqa:
            raise NotImplementedError("attention with dropout, a causal mask or grouped heads has no ONNX form here")
        factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is None:
            return ops[PLAIN](q, k, v, scale=factor)
        return ops[CHOSEN if attn_mask.dtype == ir.DataType.BOOL else MASKED](q, k, v, attn_mask, scale=factor)

    return {torch.ops.aten.scaled_dot_product_attention.default: node}


def _schema(name: str) -> Any:
    from onnx.defs import OpSchema

    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[OpSchema.FormalParameter(one, "M" if one == "mask" and name == CHOSEN else "T") for one in INPUTS[name]],
        outputs=[OpSchema.FormalParameter("o", "T")],
        type_constraints=[
            ("T", FLOATS, "type of all but a mask of bools"),
            *([("M", ["tensor(bool)"], "")] * (name == CHOSEN)),
        ],
        attributes=[OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, "multiplies the logits", required=True)],
    )


def attach(model: Any) -> None:
    """Give a model the functions that its nodes name, in place."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    model.functions.extend(function_proto(name, opset) for name in INPUTS if name in used)


def function_proto(name: str, opset: int) -> Any:
    """The body in the standard operators of `opset` (>= 18), in the type of its inputs."""
    from onnx import AttributeProto, helper

    factor = helper.make_node("Constant", [], ["factor32"])
    factor.attribute.append(AttributeProto(name="value_float", ref_attr_name="scale", type=AttributeProto.FLOAT))
    masks = {
        PLAIN: [helper.make_node("Identity", ["logits"], ["masked"])],
        MASKED: [helper.make_node("Add", ["logits", "mask"], ["masked"])],
        CHOSEN: [
            helper.make_node("Constant", [], ["unseen32"], value_float=float("-inf")),
            helper.make_node("CastLike", ["unseen32", "q"], ["unseen"]),
            helper.make_node("Where", ["mask", "logits", "unseen"], ["masked"]),
        ],
    }
    nodes = [
        factor,
        helper.make_node("CastLike", ["factor32", "q"], ["factor"]),
        # before the product: q @ k.T alone may leave fp16's range
        helper.make_node("Mul", ["q", "factor"], ["scaled"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "kt"], ["logits"]),
        *masks[name],
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
    ]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name, list(INPUTS[name]), ["o"], nodes, opsets, ["scale"])


def use_operator(model: Any) -> None:
    """Turn the nodes of a model into the operator, in place; its inputs and its `scale` are those of our functions.

    Nothing else that the exporter writes at opset 18 means something else at 23.
    """
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in INPUTS:
            node.domain, node.op_type = "", OPERATOR
    kept = [function for function in model.functions if function.name not in INPUTS]
    del model.functions[:]
    model.functions.extend(kept)
    for holder in (model, *model.functions):
        for entry in holder.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = OPERATOR_OPSET


def let_decompose(trt: Any, network: Any) -> None:
    """Allow TensorRT to spell out an attention for which it has no kernel, such as one in fp32, instead of failing."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if kind is not None and layer.type == kind:
            # the bindings hand out the base class
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
