"""FAE: the op against float64 and against facts of the mathematics, and the ONNX function against the op."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from toprovar.plugins.flash_attention_entropy import flash_attention_entropy
from toprovar.plugins.flash_attention_entropy.onnx import PLUGIN_ATTRIBUTES, attach
from torch import Tensor

SHAPES = [(1, 2, 1, 1, 64), (1, 2, 25, 55, 64), (2, 1, 100, 255, 48), (1, 1, 700, 3001, 32)]
IDS = ["B{}-H{}-Nq{}-Nk{}-D{}".format(*shape) for shape in SHAPES]
# measured on the CPU, doubled
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q = torch.randn(batch, heads, queries, width, generator=generator)
    k, v = (torch.randn(batch, heads, keys, width, generator=generator) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    a = (q.double() @ k.double().transpose(-1, -2) * scale).softmax(dim=-1)
    return a @ v.double(), -torch.special.xlogy(a, a).sum(dim=-1)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = inputs(shape, dtype)
    output, entropy = flash_attention_entropy(q, k, v, 0.3)
    expected, expected_entropy = definition(q, k, v, 0.3)
    assert output.dtype == dtype
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=2e-5)


def test_uniform_attention_has_entropy_log_n() -> None:
    _, k, v = inputs((1, 2, 5, 777, 16))
    entropy = flash_attention_entropy(torch.zeros(1, 2, 5, 16), k, v, 1.0)[1]
    torch.testing.assert_close(entropy, torch.full((1, 2, 5), math.log(777)))


def test_one_hot_attention_has_entropy_zero() -> None:
    """Logits far apart underflow to exactly 0 and must not give 0 * -inf."""
    keys = torch.eye(16)[None, None]
    output, entropy = flash_attention_entropy(keys * 1e4, keys, keys, 1.0)
    assert torch.equal(output, keys)
    assert torch.equal(entropy, torch.zeros(1, 1, 16))


def test_duplicate_keys_add_log_two() -> None:
    q, k, v = inputs((1, 1, 9, 20, 16))
    single = flash_attention_entropy(q, k, v, 0.5)[1]
    double = flash_attention_entropy(q, torch.cat([k, k], dim=2), torch.cat([v, v], dim=2), 0.5)[1]
    torch.testing.assert_close(double, single + math.log(2))


def test_nan_stays_visible() -> None:
    q, k, v = inputs((1, 1, 4, 8, 16))
    q[0, 0, 2, 3] = float("nan")
    output, entropy = flash_attention_entropy(q, k, v, 1.0)
    assert entropy.isnan().tolist() == [[[False, False, True, False]]]
    assert output[0, 0, 2].isnan().all()


def test_shape_mismatch_names_the_shapes() -> None:
    q, k, v = inputs((1, 1, 4, 8, 16))
    with pytest.raises(ValueError, match=r"got \[1, 1, 4, 16\], \[1, 1, 8, 8\], \[1, 1, 8, 16\]"):
        flash_attention_entropy(q, k[..., :8], v, 1.0)
    with pytest.raises(ValueError, match="share dtype"):
        flash_attention_entropy(q, k.half(), v.half(), 1.0)


def test_op_is_registered_as_torch_wants_it() -> None:
    torch.library.opcheck(torch.ops.toprovar.flash_attention_entropy.default, (*inputs((1, 2, 7, 9, 16)), 0.25))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [(TensorProto.FLOAT, np.float32, 1e-5), (TensorProto.FLOAT16, np.float16, 1e-3)],
    ids=["fp32", "fp16"],
)
def test_onnx_function_equals_the_op(opset: int, kind: int, dtype: type[np.generic], tolerance: float) -> None:
    q, k, v = inputs((1, 2, 25, 55, 64))
    node = helper.make_node(
        "FlashAttentionEntropy", ["q", "k", "v"], ["o", "e"], domain="toprovar", scale=0.3, **PLUGIN_ATTRIBUTES
    )
    tensors = [helper.make_tensor_value_info(name, kind, list(t.shape)) for name, t in zip("qkv", (q, k, v), strict=True)]
    outputs = [
        helper.make_tensor_value_info("o", kind, list(q.shape)),
        helper.make_tensor_value_info("e", TensorProto.FLOAT, list(q.shape[:3])),
    ]
    graph = helper.make_graph([node], "fae", tensors, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach(model)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: t.numpy().astype(dtype) for name, t in zip("qkv", (q, k, v), strict=True)}
    output, entropy = session.run(None, feeds)
    expected, expected_entropy = flash_attention_entropy(*(torch.from_numpy(feeds[name]).float() for name in "qkv"), 0.3)
    np.testing.assert_allclose(output.astype(np.float32), expected.numpy(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(entropy, expected_entropy.numpy(), rtol=0, atol=tolerance)
