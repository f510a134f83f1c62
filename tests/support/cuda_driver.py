"""Launch PTX through the CUDA driver alone, the way an engine does: no Triton, no torch launcher."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def launch_ptx(
    ptx: bytes,
    name: str,
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    arguments: Sequence[ctypes._SimpleCData],
) -> None:
    """Load the module into torch's current context, run the kernel once on the default stream, and wait.

    Args:
        arguments: ctypes values, in the order of the kernel's parameters.

    Raises:
        RuntimeError: A driver call failed; the message names it.
    """
    driver = ctypes.CDLL("libcuda.so.1")

    def check(call: str, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{call}: {text.value!r}")

    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check("cuModuleLoadData", driver.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(ptx + b"\0")))
    check("cuModuleGetFunction", driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    if shared_bytes > 48 * 1024:
        check("cuFuncSetAttribute", driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes))
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.cast(ctypes.byref(a), ctypes.c_void_p) for a in arguments))
    check("cuLaunchKernel", driver.cuLaunchKernel(function, *grid, *block, shared_bytes, None, pointers, None))
    check("cuCtxSynchronize", driver.cuCtxSynchronize())
    check("cuModuleUnload", driver.cuModuleUnload(module))
