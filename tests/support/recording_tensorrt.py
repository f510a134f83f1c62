"""A TensorRT that builds nothing: it records every call, and refuses what the genuine bindings do not have.

Names are looked up in NVIDIA's own classes and the number of arguments in their signatures, so a call that TensorRT would
refuse for its form fails here too. Enumerations, `ILogger` and `IProgressMonitor` are the genuine ones.

    python recording_tensorrt.py    # one plan with the bindings that `import tensorrt_bindings` finds; prints the calls
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GENUINE = (
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "DataType", "LayerType", "ILogger", "IProgressMonitor",
    "IAttentionInputLayer",
)  # fmt: skip


def arity(method: Any) -> tuple[int, int]:
    """Least and most positional arguments without `self`, over all overloads, from pybind's docstring."""
    found = []
    for parameters in re.findall(r"^(?:\d+\. )?\w+\((self: .*)\) -> ", method.__doc__ or "", re.MULTILINE):
        plain = re.sub(r"\[[^\]]*\]", "", parameters).split(", ")[1:]
        found.append((sum(" = " not in one for one in plain), len(plain)))
    assert found, f"no signature in {method!r}"
    return min(least for least, _ in found), max(most for _, most in found)


class Recorder:
    """An object of one genuine class."""

    def __init__(self, real: Any, calls: list[Any], answers: dict[str, Any]) -> None:
        self.__dict__.update(_real=real, _calls=calls, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._real, name)
        if isinstance(member, property):
            return self._answers[name]

        def call(*arguments: Any) -> Any:
            least, most = arity(member)
            assert least <= len(arguments) <= most, (
                f"{self._real.__name__}.{name} takes {least} to {most}, got {len(arguments)}"
            )
            self._calls.append((name, *arguments))
            answer = self._answers.get(name)
            return answer(*arguments) if callable(answer) else answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            # the bindings hand out a base class, and a caller names the real one
            assert issubclass(value, self._real), f"{value.__name__} is no {self._real.__name__}"
            self.__dict__["_real"] = value
            return
        member = getattr(self._real, name)
        assert isinstance(member, property), f"{self._real.__name__}.{name} is no property"
        assert member.fset is not None, f"{self._real.__name__}.{name} is read-only"
        self._calls.append((name, value))


def recording(trt: Any, calls: list[Any], refuse: str = "") -> Any:
    """A module with the genuine enumerations and a recording builder.

    Args:
        trt: The genuine bindings.
        calls: Gets every call: name, arguments.
        refuse: `parse` or `build` fails.
    """
    parsed: dict[str, Any] = {}

    def parse(model: bytes) -> bool:
        import onnx

        parsed["graph"] = onnx.load_from_string(model).graph
        return refuse != "parse"

    def tensor(value: Any) -> Any:
        names = {1: "FLOAT", 7: "INT64", 10: "HALF", 16: "BF16"}
        kind = value.type.tensor_type
        shape = [-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        dtype = getattr(trt.DataType, names[kind.elem_type])
        return Recorder(trt.ITensor, calls, {"name": value.name, "dtype": dtype, "shape": shape})

    def layer(index: int) -> Any:
        kinds = {"FlashAttentionEntropy": "PLUGIN_V3", "Attention": "ATTENTION_INPUT"}
        kind = getattr(trt.LayerType, kinds.get(parsed["graph"].node[index].op_type, "ELEMENTWISE"))
        answers = {"type": kind}
        if kind.name == "ATTENTION_INPUT":
            answers["attention"] = Recorder(trt.IAttention, calls, {})
        return Recorder(trt.ILayer, calls, answers)

    class Network(Recorder):
        def __getattr__(self, name: str) -> Any:
            counts = {"num_inputs": "input", "num_outputs": "output", "num_layers": "node"}
            if name in counts:
                assert isinstance(getattr(self._real, name), property)
                return len(getattr(parsed["graph"], counts[name]))
            return super().__getattr__(name)

    cache = Recorder(trt.ITimingCache, calls, {"serialize": b"timings"})
    profile = Recorder(trt.IOptimizationProfile, calls, {"set_shape": None})
    config = Recorder(
        trt.IBuilderConfig,
        calls,
        {
            "add_optimization_profile": 0,
            "create_timing_cache": cache,
            "set_timing_cache": True,
            "get_timing_cache": cache,
        },
    )
    get = {f"get_{name}": lambda i, name=name: tensor(getattr(parsed["graph"], name)[i]) for name in ("input", "output")}
    network = Network(trt.INetworkDefinition, calls, {**get, "get_layer": layer})
    answers = {
        "create_network": network,
        "create_builder_config": config,
        "create_optimization_profile": profile,
        "build_serialized_network": None if refuse == "build" else b"a plan",
    }
    parser = Recorder(trt.OnnxParser, calls, {"parse": parse, "num_errors": 0})
    return SimpleNamespace(
        __version__=trt.__version__,
        Builder=lambda logger: Recorder(trt.Builder, calls, answers),
        OnnxParser=lambda network, logger: parser,
        **{name: getattr(trt, name) for name in GENUINE if hasattr(trt, name)},
    )


def main() -> None:
    """Build one small plan in fp32, with attention and without a plugin, and print the names of the calls."""
    import numpy
    import tensorrt_bindings as trt
    from onnx import TensorProto, helper
    from toprovar.compile.attention import DOMAIN, PLAIN, attach
    from toprovar.compile.plan_options import PlanOptions
    from toprovar.compile.plan_record import Limits
    from toprovar.compile.plans import PlanBuilder
    from toprovar.compile.tensorrt_flavours import FLAVOURS, Toolkit, check_version
    from toprovar.compile.weight_store import Exported

    check_version(FLAVOURS["tensorrt"], trt.__version__)
    shape = ["batch", 2, 3, 4]
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node(PLAIN, ["y", "x", "x"], ["x.out"], domain=DOMAIN, scale=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("x.out", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, [4], numpy.ones(4, numpy.float32))],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    attach(proto)
    calls: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        options = PlanOptions(
            target="tensorrt", precision="fp32", sm=(90,), max_text=8, workspace_gib=1, timing_cache=f"{folder}/t.cache"
        )
        builder = PlanBuilder(Toolkit(FLAVOURS["tensorrt"], recording(trt, calls)), options)
        exported = Exported(proto, {"w": "transformer.w"}, ("x",), ("x.out",))
        record = builder.build(Path(folder) / "x.plan", exported, Limits(images=2, text=8), {})
    assert record.inputs == {"x": ["fp32", [-1, 2, 3, 4]]}, record
    print(trt.__version__, builder.kit.network_flags(), *(call[0] for call in calls))


if __name__ == "__main__":
    from tensorrt_link_stubs import build_stubs

    with tempfile.TemporaryDirectory() as temporary:
        build_stubs(Path(temporary))
    sys.exit(main())
