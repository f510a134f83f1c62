"""The TensorRT plugin, asked by NVIDIA's own `tensorrt.plugin` code everything that an engine builder asks.

TensorRT's library is not here (`tensorrt_link_stubs`), so no engine is built: what is held is the plugin's side.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from planned_launch import Conversation, planned_launch
from tensorrt_link_stubs import missing, stubbed_tensorrt
from toprovar.plugins.flash_attention_entropy.ahead_of_time import SAFE_SHARED_BYTES, compile_kernel, tactics
from toprovar.plugins.flash_attention_entropy.tensorrt import check_versions, register

needs_bindings = pytest.mark.skipif(bool(missing()), reason=missing())
SIZES: dict[str, int | None] = {"B": 2, "H": 16, "Nq": 333, "Nk": 77, "D": 128}
DYNAMIC = [
    pytest.param((), id="static"),
    pytest.param(("Nq", "Nk"), id="dynamic-tokens"),
    pytest.param(("B", "H", "Nq", "Nk"), id="all-dynamic"),
]


@pytest.fixture
def trt() -> Iterator[Any]:
    """NVIDIA's bindings, with the plugin registered for sm_90."""
    pytest.importorskip("triton", reason="triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    with stubbed_tensorrt() as found:
        register(90)
        yield found


def ask(trt: Any, dynamic: tuple[str, ...] = (), dtype: str = "bf16", **sizes: int) -> Conversation:
    return Conversation(trt, {**SIZES, **sizes, **dict.fromkeys(dynamic)}, dtype, 0.25)


@needs_bindings
def test_registering_twice_is_fine(trt: Any) -> None:
    register(90)
    register(80)
    assert trt.get_plugin_registry().get_creator("FlashAttentionEntropy", "1", "toprovar") is not None
    assert hasattr(sys.modules["tensorrt.plugin"].op.toprovar, "FlashAttentionEntropy")


@needs_bindings
@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_outputs_are_like_q_and_one_float_a_row(trt: Any, dtype: str, dynamic: tuple[str, ...]) -> None:
    asked = ask(trt, dynamic, dtype)
    assert asked.output_types == [{"fp16": trt.float16, "bf16": trt.bfloat16}[dtype], trt.float32]
    shapes = [[dim.evaluate({k: v for k, v in SIZES.items() if v}) for dim in shape] for shape in asked.output_shapes]
    assert shapes == [[2, 16, 333, 128], [2, 16, 333]]
    assert asked.output_shapes[1][2].is_constant() == ("Nq" not in dynamic)


@needs_bindings
def test_types_are_all_fp16_or_all_bf16_and_linear(trt: Any) -> None:
    asked = ask(trt)
    halves = [trt.float16, trt.bfloat16]
    assert [desc.type for desc in asked.combinations] == [kind for half in halves for kind in [*[half] * 4, trt.float32]]
    assert {desc.format for desc in asked.combinations} == {trt.TensorFormat.LINEAR}


@needs_bindings
def test_offered_tactics_fit_the_limit(trt: Any) -> None:
    assert ask(trt).tactics() == [1, 2]
    register(80)
    assert ask(trt).tactics() == [1, 2, 3]
    register(90, shared_limit_bytes=232448)
    assert ask(trt).tactics() == [1, 2, 3, 4]
    register(90, shared_limit_bytes=1024)
    with pytest.raises(ValueError, match="shared_limit_bytes is 1024; expected at least 49152"):
        ask(trt)


@needs_bindings
@pytest.mark.parametrize("dynamic", DYNAMIC)
def test_launch_evaluates_to_the_expected_integers(trt: Any, dynamic: tuple[str, ...]) -> None:
    launch, extra, name, ptx = ask(trt, dynamic).launch(1)
    sizes = {k: v for k, v in SIZES.items() if v}
    axes = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")
    # 333 rows in tiles of 64, 2 * 16 heads, 4 warps
    assert [getattr(launch, axis).expr.evaluate(sizes) for axis in axes] == [6, 32, 1, 128, 1, 1]
    kernel = compile_kernel(target=90, dtype="bf16", width=128, scale=0.25, tactic=tactics(128)[0])
    assert launch.shared_mem.expr.evaluate(sizes) == kernel.shared_bytes <= SAFE_SHARED_BYTES
    assert (name, ptx.decode()) == (kernel.name, kernel.ptx)
    assert {extra[i].dtype for i in range(extra.nbSymExprs)} == {trt.PluginArgDataType.INT32}
    q_strides, k_strides = [16 * 333 * 128, 333 * 128], [16 * 77 * 128, 77 * 128]
    expected = [*q_strides, *k_strides, *k_strides, *q_strides, 16, 333, 77]
    assert [extra[i].expr.evaluate(sizes) for i in range(extra.nbSymExprs)] == expected


@needs_bindings
def test_planned_launch_of_one_row(trt: Any) -> None:
    found = planned_launch((1, 3, 1, 5, 64), "fp16", 80, 2, 0.5)
    assert found == planned_launch((1, 3, 1, 5, 64), "fp16", 80, 2, 0.5, dynamic=False)
    assert (found.grid, found.block) == ((1, 3, 1), (256, 1, 1))
    assert found.extra_ints == (192, 64, 960, 320, 960, 320, 192, 64, 3, 1, 5)
    assert found.name.startswith("fae_forward_sm80_fp16_d64_q128k64w8s2_")
    assert f".entry {found.name}(".encode() in found.ptx


@needs_bindings
def test_each_scale_has_a_kernel_of_its_own(trt: Any) -> None:
    """The attribute is a constant of the code: two layers of one network must not share it."""
    first, second = (planned_launch((1, 1, 9, 9, 64), "bf16", 80, 1, scale) for scale in (0.125, 1.0))
    assert first.name != second.name
    assert first.ptx != second.ptx


@needs_bindings
def test_wrong_shapes_are_refused_with_the_shapes(trt: Any) -> None:
    with pytest.raises(ValueError, match="head width 72: expected a multiple of 16"):
        ask(trt, D=72)
    with pytest.raises(ValueError, match=r"got q, k, v \[\(2, 16, 333, -1\).*with D static"):
        ask(trt, ("D",))

    class OtherKeys(Conversation):
        axes = (("B", "H", "Nq", "D"), ("B", "H", "Nk", "D"), ("B", "H", "Nv", "D"))

    with pytest.raises(ValueError, match=r"\(2, 16, 77, 128\), \(2, 16, 78, 128\)\]; expected q"):
        OtherKeys(trt, {**SIZES, "Nv": 78}, "bf16", 0.25)


@needs_bindings
def test_nothing_of_tensorrt_is_left_behind() -> None:
    with stubbed_tensorrt():
        assert "tensorrt.plugin" in sys.modules
    assert not [name for name in sys.modules if name == "tensorrt" or name.startswith("tensorrt.")]


def test_versions_that_do_not_fit_are_refused() -> None:
    check_versions("10.13.3.9", "2.3.5")
    check_versions("11.4.0.106", "2.4.6")
    with pytest.raises(RuntimeError, match=r"TensorRT 11\.1\.0\.1 cannot read .* numpy 2\.4\.6; install TensorRT 11\.2"):
        check_versions("11.1.0.1", "2.4.6")
    for version in ("10.9.0.34", "12.0.0.1"):
        with pytest.raises(RuntimeError, match=rf"TensorRT {version}: expected 10\.13 to 11\.x"):
            check_versions(version, "2.3.5")


def test_missing_tensorrt_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r'TensorRT is missing; run `pip install "toprovar\[tensorrt\]"`'):
        register(90)


@needs_bindings
def test_no_gpu_and_no_target_is_told(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"sees no GPU and no target was given; call register\(90\)"):
        register()
    with pytest.raises(ValueError, match="target sm_75: expected sm_80 or newer"):
        register(75)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    register()
    assert ask(trt).tactics() == [1, 2, 3]
