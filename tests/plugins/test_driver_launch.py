"""The very PTX, launch parameters and arguments that the TensorRT plugin gives, run on the GPU by the CUDA driver.

As near to an engine's own launch as can be had without TensorRT's library: NVIDIA's plugin package asks our plugin, and the
two parameters that Triton hides at the end are null, as TensorRT pads them.
"""

from __future__ import annotations

import ctypes
import os

import pytest
import torch
from cuda_driver import launch_ptx
from fae_cases import agree, definition, inputs
from tensorrt_link_stubs import missing

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles kernels"),
]
SHAPES = [(1, 2, 1, 1, 64), (2, 3, 25, 55, 64), (2, 16, 144, 265, 128), (1, 2, 700, 1111, 96), (1, 2, 70, 300, 256)]
IDS = ["B{}-H{}-Nq{}-Nk{}-D{}".format(*shape) for shape in SHAPES]


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize("tactic", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_the_planned_launch_computes_attention(shape: tuple[int, ...], dtype: str, tactic: int, target: int) -> None:
    """sm_80 code too: it is what GPUs without code of their own receive."""
    from planned_launch import planned_launch

    major, minor = torch.cuda.get_device_capability()
    if target == 90 and (major, minor) != (9, 0):
        pytest.skip("sm_90a code runs on sm_90 alone")
    plan = planned_launch(shape, dtype, target, tactic, 0.2)
    q, k, v = (t.contiguous() for t in inputs(shape, {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype], "cuda"))
    o = torch.full_like(q, float("nan"))
    e = torch.full(q.shape[:3], float("nan"), device="cuda")
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q, k, v)]
    outputs = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (o, e)]
    hidden = [ctypes.c_void_p(None), ctypes.c_void_p(None)]
    torch.cuda.synchronize()
    arguments = [*pointers, *(ctypes.c_int32(value) for value in plan.extra_ints), *outputs, *hidden]
    launch_ptx(plan.ptx, plan.name, plan.grid, plan.block, plan.shared_bytes, arguments)
    agree((o, e), definition(q, k, v, 0.2))
