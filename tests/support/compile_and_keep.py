"""Two processes in turn: each opens a bundle's archive, compiles a graph by torch and a kernel by Triton, and keeps both.

    python compile_and_keep.py BUNDLE

Each prints a line of JSON: its folder, and how often the caches of graphs and of kernels had what was asked for. The first is
forked off when all is imported, which takes longer than compiling.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# sets a variable to torch's own default, which must not count as the user's choice
import torch._dynamo
import torch._inductor.compile_fx
import triton
import triton.language as tl
from toprovar.runtime.kernel_archive import KernelArchive
from toprovar.runtime.kernel_folder import kernel_folder
from toprovar.runtime.machine import Machine
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)


@triton.jit
def doubled(x, n, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


def compile_and_keep(bundle: Path) -> None:
    archive = KernelArchive(bundle, Machine(gpu="a GPU", cuda="13.0"))
    archive.restore()
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    source = ASTSource(fn=doubled, signature={"x": "*fp32", "n": "i32", "block": "constexpr"}, constexprs={"block": 64})
    triton.compile(source, target=HOPPER)
    with torch.inference_mode():
        # a product of matrices is called, not generated: a graph without the C++ compiler
        x = torch.arange(63.0).view(9, 7)
        assert torch.equal(torch.compile(lambda x: x.T @ x)(x), x.T @ x)
    archive.keep()
    counted = {name: dict(torch._dynamo.utils.counters[name]) for name in ("inductor", "aot_autograd")}
    print(json.dumps({"folder": str(kernel_folder()), "kernels": hits, **counted}), flush=True)


def main() -> int:
    child = os.fork()
    if child and os.waitpid(child, 0)[1]:
        return 1
    compile_and_keep(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
