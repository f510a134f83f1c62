"""FAE in ONNX: a model-local function with the op's meaning, which TensorRT replaces by the plugin of the same name.

The exporter would inline a function that it is given as such, so it is given a bare node of our domain instead, and the
function is attached to the finished model. Parsers that know no plugin run the function body; TensorRT takes the plugin,
because the node carries `plugin_namespace`, `plugin_version` and `aot`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DOMAIN = "toprovar"
NAME = "FlashAttentionEntropy"
VERSION = 1
PLUGIN_ATTRIBUTES: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}


def translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` of `torch.onnx.export`: the torch op becomes a bare node."""
    import torch
    from onnxscript import values

    from . import flash_attention_entropy  # registers the torch op

    assert flash_attention_entropy is not None
    op = values.Op(values.Opset(DOMAIN, VERSION), NAME, _schema())

    def node(q: Any, k: Any, v: Any, scale: float) -> Any:
        return op(q, k, v, scale=scale, **PLUGIN_ATTRIBUTES)

    return {torch.ops.toprovar.flash_attention_entropy.default: node}


def _schema() -> Any:
    from onnx.defs import OpSchema

    kinds = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    parameters = [OpSchema.FormalParameter(name, "T") for name in ("q", "k", "v")]
    outputs = [OpSchema.FormalParameter("o", "T"), OpSchema.FormalParameter("e", "tensor(float)")]
    attributes = [
        OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, "multiplies the logits", required=True),
        OpSchema.Attribute("plugin_namespace", OpSchema.AttrType.STRING, "for TensorRT", required=False),
        OpSchema.Attribute("plugin_version", OpSchema.AttrType.STRING, "for TensorRT", required=False),
        OpSchema.Attribute("aot", OpSchema.AttrType.INT, "for TensorRT", required=False),
    ]
    return OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        inputs=parameters,
        outputs=outputs,
        type_constraints=[("T", kinds, "type of q, k, v and o")],
        attributes=attributes,
    )


def function_proto(opset: int) -> Any:
    """The function's body in the standard operators of `opset` (>= 18), computed in fp32."""
    from onnx import TensorProto, helper

    def cast(name: str) -> Any:
        return helper.make_node("Cast", [name], [f"{name}32"], to=TensorProto.FLOAT)

    scale = helper.make_node("Constant", [], ["factor"])
    scale.attribute.append(_attribute_reference("value_float", "scale"))
    nodes = [
        *(cast(name) for name in ("q", "k", "v")),
        scale,
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        helper.make_node("Transpose", ["k32"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q32", "kt"], ["products"]),
        helper.make_node("Mul", ["products", "factor"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_p"], axis=-1),
        helper.make_node("Exp", ["log_p"], ["p"]),
        helper.make_node("MatMul", ["p", "v32"], ["o32"]),
        helper.make_node("CastLike", ["o32", "q"], ["o"]),
        # a key of weight 0 contributes 0, not 0 * -inf
        helper.make_node("Equal", ["p", "zero"], ["unseen"]),
        helper.make_node("Mul", ["p", "log_p"], ["terms"]),
        helper.make_node("Where", ["unseen", "zero", "terms"], ["safe"]),
        helper.make_node("ReduceSum", ["safe", "last"], ["negative"], keepdims=0),
        helper.make_node("Neg", ["negative"], ["e"]),
    ]
    defaults = [helper.make_attribute(name, value) for name, value in PLUGIN_ATTRIBUTES.items()]
    return helper.make_function(
        DOMAIN, NAME, ["q", "k", "v"], ["o", "e"], nodes, [helper.make_opsetid("", opset)], ["scale"], defaults
    )


def _attribute_reference(name: str, parameter: str) -> Any:
    from onnx import AttributeProto

    attribute = AttributeProto()
    attribute.name, attribute.ref_attr_name, attribute.type = name, parameter, AttributeProto.FLOAT
    return attribute


def attach(model: Any) -> None:
    """Give a model that has FAE nodes the function, in place; does nothing to others."""
    if not any(node.domain == DOMAIN and node.op_type == NAME for node in model.graph.node):
        return
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    model.functions.append(function_proto(opset))
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=VERSION)
