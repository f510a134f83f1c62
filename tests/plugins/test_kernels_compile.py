"""Kernels compile for GPUs that are not here: the interpreter that runs their tests takes more than a compiler does."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")
import triton
from toprovar.plugins.branch_tokens import kernel as branch
from toprovar.plugins.reused_tokens import kernel as reused
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SIZES = {"SOURCE_H": 20, "SOURCE_W": 20, "TARGET_H": 64, "TARGET_W": 64, "TOKENS": 32, "BLOCK": 64}
KERNELS = {
    "enlarge": (reused.enlarge_kernel, {"INDEX": True, "ONTO": True}),
    "enlarge all": (reused.enlarge_kernel, {"INDEX": False, "ONTO": False}),
    "put back": (reused.put_back_kernel, {}),
    "add restored": (branch.add_restored_kernel, {"WINDOW_H": 2, "WINDOW_W": 2, "GATE": True}),
}
POINTERS = {"index_ptr": "*i64", "slot_ptr": "*i32", "sums_ptr": "*fp32"}


@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles(name: str, sm: int) -> None:
    function, own = KERNELS[name]
    # dependent launch begins with sm_90
    constants: dict[str, Any] = {**SIZES, **own, "DEPENDENT": sm >= 90}
    kinds = {arg: "constexpr" if arg in constants else _kind(arg) for arg in function.arg_names}
    source = ASTSource(function, kinds, constexprs={(function.arg_names.index(k),): v for k, v in constants.items()})
    ptx = triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": 4}).asm["ptx"]
    # cells are found by multiplications: sizes are constants
    assert not re.search(r"\b(div|rem)\.[su]", ptx)


def _kind(name: str) -> str:
    return POINTERS.get(name, "*bf16") if name.endswith("_ptr") else "i32"
