"""FAE as PTX text for a GPU that need not be here: what an engine builder embeds in a plan.

Triton compiles for a named target without a driver. What a caller cannot see in the PTX is fixed here once: which arguments
are constants, in which order the others come, which tiles fit, and how the launch is counted. The arithmetic uses only
`+`, `*` and `//` with a symbol on the left, so that it serves plain integers and TensorRT's symbolic dimensions alike.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# sm numbers with code of their own; every other one from 80 on runs the portable sm_80 code
TARGETS = (80, 86, 89, 90, 100, 120)
PORTABLE = 80
DTYPES = ("fp16", "bf16")
WIDEST = 256
# what a program may have without a launch attribute, which TensorRT is not known to set
SAFE_SHARED_BYTES = 48 * 1024
# the lowest PTX version that ptxas takes for the target, in tenths: an older driver then still reads the plan
PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 120: 87}
# run-time integers of the kernel, in its order; n-strides are the head width, a constant
EXTRA_ARGUMENTS = (
    "q_stride_b", "q_stride_h", "k_stride_b", "k_stride_h", "v_stride_b", "v_stride_h", "o_stride_b", "o_stride_h",
    "heads", "queries", "keys",
)  # fmt: skip
# what a plain launch with pointers and integers can serve
LAUNCHABLE = {
    "num_ctas": 1, "warp_size": 32, "global_scratch_size": 0, "profile_scratch_size": 0, "tmem_size": 0,
    "launch_cooperative_grid": False, "launch_pdl": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tactic:
    """Query rows and keys of a tile, warps of a program, stages of the load pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"q{self.block_q}k{self.block_k}w{self.warps}s{self.stages}"


# By widest head. The first of each fits SAFE_SHARED_BYTES on every target and spills at most 192 bytes a thread; which of
# the others is faster depends on the GPU and the shape, so the engine builder times them.
TACTICS = {
    64: (Tactic(64, 64, 4, 2), Tactic(128, 64, 8, 2), Tactic(64, 64, 4, 3)),
    128: (Tactic(64, 32, 4, 2), Tactic(64, 32, 8, 2), Tactic(128, 32, 8, 2), Tactic(64, 64, 4, 2)),
    WIDEST: (Tactic(32, 16, 4, 2), Tactic(32, 32, 8, 2), Tactic(64, 32, 4, 2)),
}


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One kernel, ready to be loaded by a driver.

    Attributes:
        name: Entry point, unique for target, dtype, width, tactic, scale and code.
        ptx: PTX text. Parameters: q, k, v pointers, `EXTRA_ARGUMENTS` as i32, o, e pointers, two unused u64 of Triton's.
        shared_bytes: Dynamic shared memory of a program.
        warps: Warps of a program; a block has 32 times as many threads, in x.
        built_for: sm number the PTX is for, `PORTABLE` where the target's own code could not be launched.
        tactic: The tile it was compiled with.
    """

    name: str
    ptx: str
    shared_bytes: int
    warps: int
    built_for: int
    tactic: Tactic


def tactics(width: int) -> tuple[Tactic, ...]:
    """Tiles for head width D, the safe one first; TensorRT numbers them from 1."""
    _check_width(width)
    return next(found for widest, found in TACTICS.items() if width <= widest)


def pick_tactic(width: int, number: int) -> Tactic:
    """Tile number `number`, counted from 1; 0, TensorRT's default, is the safe one."""
    found = tactics(width)
    if not 0 <= number <= len(found):
        raise ValueError(f"tactic {number}: head width {width} has tactics 1 to {len(found)}; delete an older timing cache")
    return found[max(number, 1) - 1]


def launch_grid(batch: Any, heads: Any, queries: Any, tile: Tactic) -> tuple[Any, Any, int]:
    """Programs in x, y, z; sizes may be integers or symbols that know `+`, `*` and `//`."""
    return (queries + (tile.block_q - 1)) // tile.block_q, batch * heads, 1


def extra_arguments(heads: Any, queries: Any, keys: Any, width: int) -> tuple[Any, ...]:
    """Values of `EXTRA_ARGUMENTS` for contiguous q, o `[B, H, Nq, D]` and k, v `[B, H, Nk, D]`.

    Strides are in elements and must fit 32 bits: H * N * D below 2**31.
    """
    q_stride_h, k_stride_h = queries * width, keys * width
    q_strides, k_strides = (q_stride_h * heads, q_stride_h), (k_stride_h * heads, k_stride_h)
    return (*q_strides, *k_strides, *k_strides, *q_strides, heads, queries, keys)


@cache
def compile_kernel(*, target: int, dtype: str, width: int, scale: float, tactic: Tactic) -> CompiledKernel:
    """Compile FAE for one GPU generation, on any machine.

    Args:
        target: sm number, at least 80, as 90 for Hopper; one outside `TARGETS` gets the portable code.
        dtype: "fp16" or "bf16", of q, k, v and o; e is fp32.
        width: Head width D, a multiple of 16 up to 256.
        scale: Multiplies the logits, above 0; a constant of the code.
        tactic: Tile, warps and stages.

    Returns:
        The kernel for contiguous tensors whose addresses are multiples of 16 bytes.

    Raises:
        ValueError: An argument is out of range, or the compiled kernel needs more than a plain launch.
        ImportError: Triton is not installed.
        RuntimeError: `TRITON_INTERPRET=1` has replaced the compiler.
    """
    check_target(target)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {DTYPES}; convert q, k and v")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale!r}: expected a finite number above 0; negate q for a negative one")
    _check_width(width)
    built_for = target if target in TARGETS else PORTABLE
    found = _compile(built_for, dtype, width, float(scale), tactic)
    if found.metadata.tmem_size and built_for != PORTABLE:
        # a launch that knows nothing of tensor memory cannot serve tcgen05 code; sm_80 code runs on every later GPU
        built_for, found = PORTABLE, _compile(PORTABLE, dtype, width, float(scale), tactic)
    check_launchable(found.metadata)
    ptx, plain = found.asm["ptx"], found.metadata.name
    digest = hashlib.sha256(f"{float(scale)!r}\n{ptx}".encode()).hexdigest()[:12]
    # one name for two kernels would let an engine mix them up
    name = f"{plain}_sm{target}_{dtype}_d{width}_{tactic}_{digest}"
    ptx = re.sub(rf"\b{plain}\b", name, ptx)
    return CompiledKernel(name, ptx, found.metadata.shared, found.metadata.num_warps, built_for, tactic)


def check_target(target: int) -> None:
    """Refuse a GPU generation that cannot run even the portable code."""
    if target < PORTABLE:
        raise ValueError(f"target sm_{target}: expected sm_{PORTABLE} or newer; FAE needs bf16 and asynchronous copies")


def check_launchable(metadata: Any) -> None:
    """Refuse a kernel that needs more of its launch than a grid, a block, shared memory, pointers and integers."""
    wrong = {key: getattr(metadata, key, None) for key in LAUNCHABLE}
    wrong = {key: value for key, value in wrong.items() if value not in (LAUNCHABLE[key], None)}
    if wrong:
        raise ValueError(f"kernel {metadata.name}: got {wrong}, expected {LAUNCHABLE}; use triton 3.7.1 or another tactic")


def kernel_hash() -> str:
    """Hex digest of all that decides the PTX: kernel, tactics, options, Triton. Timing caches of another one are stale."""
    here = Path(__file__)
    digest = hashlib.sha256(_triton().__version__.encode())
    for path in (here.with_name("kernel.py"), here):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_width(width: int) -> None:
    if not (16 <= width <= WIDEST and width % 16 == 0):
        raise ValueError(f"head width {width}: expected a multiple of 16 from 16 to {WIDEST}; pad the heads with zeros")


def _triton() -> Any:
    try:
        import triton
    except ImportError as err:
        raise ImportError('FAE kernels need Triton, which is missing; run `pip install "toprovar[tensorrt]"`') from err
    return triton


def _compile(target: int, dtype: str, width: int, scale: float, tactic: Tactic) -> Any:
    triton = _triton()
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from .kernel import fae_forward

    if not isinstance(fae_forward, JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 has replaced the Triton compiler; unset it and start again")
    constants = _constants(width, scale, tactic)
    kinds = dict.fromkeys(fae_forward.arg_names, "constexpr")
    kinds |= dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), f"*{dtype}") | {"e_ptr": "*fp32"}
    kinds |= dict.fromkeys(EXTRA_ARGUMENTS, "i32")
    # pointers and strides, because D is a multiple of 16; without this promise the kernel loads 2 bytes at a time
    unaligned = {*constants, "heads", "queries", "keys"}
    aligned = [i for i, name in enumerate(fae_forward.arg_names) if name not in unaligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=fae_forward, signature=kinds, constexprs=constants, attrs=attributes)
    options = {"num_warps": tactic.warps, "num_stages": tactic.stages, "enable_fp_fusion": True}
    options["ptx_version"] = PTX_VERSIONS[target]
    with knobs.compilation.scope():
        # line tables would put this machine's paths into the plan
        knobs.compilation.disable_line_info = True
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def _constants(width: int, scale: float, tactic: Tactic) -> dict[str, Any]:
    strides = dict.fromkeys((f"{tensor}_stride_n" for tensor in "qkvo"), width)
    return {
        **strides,
        "factor": scale * math.log2(math.e),
        "D": width,
        "BLOCK_D": 1 << (width - 1).bit_length(),
        "BLOCK_Q": tactic.block_q,
        "BLOCK_K": tactic.block_k,
        "SPLITS": 1,
        "ENTROPY": True,
        "PRECISION": "tf32",
        "UPCAST": False,
        "DEPENDENT": False,
    }
