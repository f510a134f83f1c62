"""FAE as a TensorRT plugin that a plan carries along: PTX inside the plan, no Python and no library where it runs.

TensorRT 10.13 to 11.x, through `tensorrt.plugin` (its ahead-of-time half). TensorRT below 11.2 cannot read a number as a
plugin attribute under numpy 2.4 or newer, so that pair is refused. TensorRT neither stores `scale` in the plan (it is a
constant of the PTX) nor asks a plugin what its timing depends on: keep one timing cache per `ahead_of_time.kernel_hash()`.
A plan with HardwareCompatibilityLevel.AMPERE_PLUS needs `register(80)`; sm_90 code runs on Hopper alone.

    register()                                     # before the ONNX parser, or
    trtp.op.toprovar.FlashAttentionEntropy(q, k, v, scale=0.125)
"""

# no `from __future__ import annotations`: tensorrt.plugin reads annotations as classes and takes text for a missing type

from dataclasses import dataclass
from typing import Any

from .ahead_of_time import (
    PORTABLE,
    SAFE_SHARED_BYTES,
    check_target,
    compile_kernel,
    extra_arguments,
    launch_grid,
    pick_tactic,
    tactics,
)
from .onnx import DOMAIN, NAME

PLUGIN = f"{DOMAIN}::{NAME}"
# q, k, v, o, e; `|` ties the alternatives together
TYPES = "FP16|BF16, FP16|BF16, FP16|BF16, FP16|BF16, FP32"


@dataclass(slots=True)
class _Build:
    """What the engines built from now on are for."""

    target: int = PORTABLE
    shared_limit_bytes: int = SAFE_SHARED_BYTES


_build = _Build()


def register(target: int | None = None, *, shared_limit_bytes: int = SAFE_SHARED_BYTES) -> None:
    """Make `toprovar::FlashAttentionEntropy` known to TensorRT; a later call only changes the settings.

    Inputs q `[B, H, Nq, D]` and k, v `[B, H, Nk, D]`, fp16 or bf16, contiguous, 16-byte aligned; attribute `scale`, a float
    above 0. Outputs o like q, and e `[B, H, Nq]` fp32 in nats. All sizes but D may be dynamic.

    Args:
        target: sm number of the GPU that will run the plan, as 90; None is the GPU of this process.
        shared_limit_bytes: Tactics that need more shared memory are not offered. Above 48 KiB a launch needs an attribute
            that TensorRT is not documented to set.

    Raises:
        ImportError: TensorRT is not installed.
        RuntimeError: Versions do not fit together, or there is no GPU and no target.
        ValueError: The target is older than sm_80.
    """
    trt, trtp = _tensorrt()
    target = _current_target() if target is None else target
    check_target(target)
    _build.target, _build.shared_limit_bytes = target, shared_limit_bytes
    if not hasattr(getattr(trtp.op, DOMAIN, None), NAME):
        _register_description(trt, trtp)
        _register_tactics(trt, trtp)
        _register_kernel(trt, trtp)


def _register_description(trt: Any, trtp: Any) -> None:
    def describe(
        q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc, scale: float
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        del scale
        if not q.ndim == k.ndim == v.ndim == 4:
            raise ValueError(f"{PLUGIN}: q, k, v have {q.ndim}, {k.ndim}, {v.ndim} dimensions; expected [B, H, N, D] each")
        batch, heads, queries, _ = q.shape_expr
        return q.like(), trtp.from_shape_expr((batch, heads, queries), trt.float32)

    trtp.register(PLUGIN)(describe)


def _register_tactics(trt: Any, trtp: Any) -> None:
    def combinations(
        q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc, scale: float,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:  # fmt: skip
        del outputs
        width = _width(q, k, v)
        # TensorRT 10 may ask while the type is still open; both types have the same tactics
        dtype = "bf16" if q.dtype == trt.bfloat16 else "fp16"
        known = {number: _compiled(dtype, width, scale, number) for number in range(1, len(tactics(width)) + 1)}
        offered = [number for number, kernel in known.items() if kernel.shared_bytes <= _build.shared_limit_bytes]
        if not offered:
            least = min(kernel.shared_bytes for kernel in known.values())
            raise ValueError(f"{PLUGIN}: shared_limit_bytes is {_build.shared_limit_bytes}; expected at least {least}")
        return [trtp.AutoTuneCombination(TYPES, "LINEAR", offered)]

    trtp.autotune(PLUGIN)(combinations)


def _register_kernel(trt: Any, trtp: Any) -> None:
    def plan(
        q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc, scale: float,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc], tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:  # fmt: skip
        del outputs
        width = _width(q, k, v)
        kernel = _compiled({trt.float16: "fp16", trt.bfloat16: "bf16"}[q.dtype], width, scale, tactic)
        batch, heads, queries, _ = q.shape_expr
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = launch_grid(batch, heads, queries, kernel.tactic)
        launch.block_x = kernel.warps * 32
        launch.shared_mem = kernel.shared_bytes
        values = extra_arguments(heads, queries, k.shape_expr[2], width)
        extra = trtp.SymIntExprs.from_tuple(tuple(trtp.SymInt32(value) for value in values))
        return kernel.name, kernel.ptx, launch, extra

    trtp.aot_impl(PLUGIN)(plan)


def _compiled(dtype: str, width: int, scale: float, number: int) -> Any:
    tile = pick_tactic(width, number)
    return compile_kernel(target=_build.target, dtype=dtype, width=width, scale=scale, tactic=tile)


def _width(q: Any, k: Any, v: Any) -> int:
    """Head width D, after a look at every size that is known; -1 is a dynamic one."""
    sizes = [tuple(tensor.shape) for tensor in (q, k, v)]
    expected = (*sizes[0][:2], sizes[1][2], sizes[0][3])
    differ = [a for other in sizes[1:] for a, b in zip(other, expected, strict=True) if min(a, b) >= 0 and a != b]
    if differ or sizes[0][3] < 0:
        raise ValueError(f"{PLUGIN}: got q, k, v {sizes}; expected q [B, H, Nq, D] and k, v [B, H, Nk, D] with D static")
    return int(sizes[0][3])


def _tensorrt() -> tuple[Any, Any]:
    try:
        import tensorrt as trt
    except ImportError as err:
        raise ImportError('TensorRT is missing; run `pip install "toprovar[tensorrt]"`, with TensorRT 10.13 to 11.x') from err
    import numpy as np

    check_versions(trt.__version__, np.__version__)
    import tensorrt.plugin as trtp

    return trt, trtp


def check_versions(tensorrt_version: str, numpy_version: str) -> None:
    """Refuse versions whose plugin interface is missing, unknown or broken."""
    found, numpy = (tuple(int(part) for part in version.split(".")[:2]) for version in (tensorrt_version, numpy_version))
    if not (10, 13) <= found < (12, 0):
        raise RuntimeError(f"TensorRT {tensorrt_version}: expected 10.13 to 11.x; install one of these")
    if found < (11, 2) and numpy >= (2, 4):
        raise RuntimeError(
            f"TensorRT {tensorrt_version} cannot read plugin attributes under numpy {numpy_version}; "
            'install TensorRT 11.2 or newer, or run `pip install "numpy<2.4"`'
        )


def _current_target() -> int:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU and no target was given; call register(90) for an H100")
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor
