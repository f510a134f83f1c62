"""What must hold for the plans of any bundle, whatever its family: manifest, ONNX graphs and parsed networks agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors import safe_open
from toprovar.profiles.manifest import WEIGHTS, EngineManifest
from toprovar.profiles.plan import FP32_STATE

NUMPY = {"fp32": np.float32, "fp16": np.float16, "int64": np.int64}


def check_tensors(bundle: Path) -> None:
    """Inputs and outputs of every plan are those of the manifest, with types and shapes of the ONNX graph."""
    manifest = EngineManifest.load(bundle)
    assert {graph.plan for graph in manifest.graphs} == set(manifest.engine["plans"])
    for graph in manifest.graphs:
        plan, proto = manifest.engine["plans"][graph.plan], onnx.load(bundle / graph.file, load_external_data=False)
        assert set(plan["inputs"]) == set(graph.inputs)
        assert set(plan["outputs"]) == set(graph.outputs)
        for values, found in ((proto.graph.input, plan["inputs"]), (proto.graph.output, plan["outputs"])):
            for value in values:
                dtype, shape = found[value.name]
                kind = value.type.tensor_type
                assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == NUMPY[dtype], value.name
                # TensorRT may know a size that the exporter left open
                for dim, size in zip(kind.shape.dim, shape, strict=True):
                    assert dim.dim_param or size in (-1, dim.dim_value), value.name


def check_precision(bundle: Path) -> None:
    """What codes are drawn from and summed in is fp32, all other state fp16."""
    manifest = EngineManifest.load(bundle)
    for scale in manifest.all_scales:
        plan = manifest.engine["plans"][scale.graph.plan]
        for name, (dtype, _) in {**plan["inputs"], **plan["outputs"]}.items():
            assert dtype == ("fp32" if name.removesuffix(".out").partition(".")[0] in FP32_STATE else "fp16"), name


def check_weights(bundle: Path) -> None:
    """Every weight is stored once, and fits each input that it feeds."""
    manifest = EngineManifest.load(bundle)
    with safe_open(bundle / WEIGHTS, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    for graph in manifest.graphs:
        proto = onnx.load(bundle / graph.file, load_external_data=False)
        initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        for name, tensor in graph.weights.items():
            assert list(stored[tensor].shape) == list(initializers[name].dims), name
            assert initializers[name].data_type == onnx.TensorProto.FLOAT16 or stored[tensor].dtype == torch.float32
    size = sum(tensor.nbytes for tensor in stored.values())
    assert manifest.engine["weight_bytes"] == size
    assert len({tensor.data_ptr() for tensor in stored.values()}) == len(stored)
