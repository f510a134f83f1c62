"""FAE compiled for GPUs that are not here: it fits, it assembles, it has the agreed parameters, it is refused in words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toprovar.plugins.flash_attention_entropy.ahead_of_time import (
    EXTRA_ARGUMENTS,
    LAUNCHABLE,
    PTX_VERSIONS,
    SAFE_SHARED_BYTES,
    TARGETS,
    CompiledKernel,
    Tactic,
    check_launchable,
    compile_kernel,
    extra_arguments,
    kernel_hash,
    launch_grid,
    pick_tactic,
    tactics,
)

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

CASES = [(target, width, dtype) for target in TARGETS for width in (64, 128) for dtype in ("fp16", "bf16")]
# padded heads, wide heads, and the one sm_100 kernel that needs no tensor memory
CASES += [(80, 96, "bf16"), (90, 96, "fp16"), (80, 224, "fp16"), (90, 224, "bf16"), (100, 256, "bf16"), (120, 256, "fp16")]
PARAMETERS = ["u64"] * 3 + ["u32"] * len(EXTRA_ARGUMENTS) + ["u64"] * 4


def safe(target: int, width: int, dtype: str = "bf16", scale: float = 0.125) -> CompiledKernel:
    tile = tactics(width)[0] if width in range(16, 257, 16) else Tactic(64, 64, 4, 1)
    return compile_kernel(target=target, dtype=dtype, width=width, scale=scale, tactic=tile)


def assemble(found: CompiledKernel, target: int, folder: Path) -> bytes:
    """Machine code for `target`, by the assembler that Triton ships."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    source, binary = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(found.ptx)
    tool = tools / ("ptxas-blackwell" if target >= 100 else "ptxas")
    # -a: code with the instructions of one generation alone
    arch = f"sm_{target}a" if found.built_for >= 90 else f"sm_{target}"
    done = subprocess.run([tool, f"--gpu-name={arch}", source, "-o", binary], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return binary.read_bytes()


@pytest.mark.parametrize(("target", "width", "dtype"), [pytest.param(*c, id="sm{}-D{}-{}".format(*c)) for c in CASES])
def test_safe_kernel_fits_assembles_and_keeps_its_parameters(target: int, width: int, dtype: str, tmp_path: Path) -> None:
    found = safe(target, width, dtype)
    assert 0 < found.shared_bytes <= SAFE_SHARED_BYTES
    assert found.name.encode() in assemble(found, target, tmp_path)
    entry = re.search(rf"\.visible \.entry {found.name}\((.*?)\)\n\.reqntid (\d+)", found.ptx, re.DOTALL)
    assert entry is not None
    assert re.findall(r"\.param \.(\w+)", entry.group(1)) == PARAMETERS
    assert int(entry.group(2)) == found.warps * 32
    version = re.search(r"^\.version (\d+)\.(\d+)$", found.ptx, re.MULTILINE)
    assert version is not None
    assert int("".join(version.groups())) == PTX_VERSIONS[found.built_for] <= 87
    assert found.built_for in (target, 80)


@pytest.mark.parametrize("width", [64, 128])
def test_sm_80_loads_16_bytes_ahead_of_use(width: int) -> None:
    """Without the alignment promise Triton emitted 192 loads of 2 bytes and not one asynchronous copy."""
    ptx = safe(80, width).ptx
    assert re.search(r"cp\.async\.cg\.shared\.global \[ .* \], \[ .* \], 0x10", ptx)
    assert "ld.global.v4.b32" in ptx
    assert not re.search(r"ld\.global(\.\w+)*\.b16", ptx)


@pytest.mark.parametrize(
    ("target", "unit"), [pytest.param(80, "mma.sync", id="sm80"), pytest.param(90, "wgmma.mma_async", id="sm90")]
)
def test_products_run_on_the_matrix_units(target: int, unit: str) -> None:
    assert unit in safe(target, 128).ptx


def test_tensor_memory_code_gives_way_to_portable_code() -> None:
    """A launch by pointers and integers cannot reserve tensor memory, which sm_100 code for this tile wants."""
    found = safe(100, 128)
    assert found.built_for == 80
    assert "tcgen05" not in found.ptx
    assert safe(100, 256).built_for == 100


@pytest.mark.parametrize("target", [103, 121])
def test_gpus_without_code_of_their_own_get_portable_code(target: int, tmp_path: Path) -> None:
    found = safe(target, 64)
    assert found.built_for == 80
    assemble(found, target, tmp_path)


def test_names_tell_kernels_apart() -> None:
    found = [compile_kernel(target=80, dtype="bf16", width=64, scale=0.125, tactic=tile) for tile in tactics(64)]
    found += [safe(80, 64, "fp16"), safe(90, 64), safe(100, 64), safe(80, 128), safe(80, 64, scale=0.25)]
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert f".entry {one.name}(" in one.ptx
        assert not re.search(r"\bfae_forward\b", one.ptx)


def test_same_bytes_from_two_compilations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for folder in ("first", "second"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / folder))
        found.append(compile_kernel.__wrapped__(target=90, dtype="bf16", width=64, scale=0.5, tactic=tactics(64)[0]))
        assert any((tmp_path / folder).iterdir())
    assert found[0] == found[1]


def test_plans_hold_no_paths_of_this_machine() -> None:
    ptx = safe(80, 64).ptx
    assert not re.search(r"^\s*\.(file|loc|section)\b", ptx, re.MULTILINE)
    assert "kernel.py" not in ptx


@pytest.mark.parametrize("width", [0, 8, 72, 272])
def test_bad_width_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"head width {width}: expected a multiple of 16 from 16 to 256; pad the heads"):
        safe(80, width)
    with pytest.raises(ValueError, match=f"head width {width}"):
        tactics(width)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf"), float("nan")], ids=str)
def test_bad_scale_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale {scale}: expected a finite number above 0; negate q"):
        safe(80, 64, scale=scale)


def test_bad_target_dtype_and_tactic_are_refused() -> None:
    with pytest.raises(ValueError, match="target sm_75: expected sm_80 or newer"):
        safe(75, 64)
    with pytest.raises(ValueError, match=r"dtype 'fp32': expected one of \('fp16', 'bf16'\); convert q, k and v"):
        safe(80, 64, "fp32")
    with pytest.raises(ValueError, match="tactic 9: head width 64 has tactics 1 to 3"):
        pick_tactic(64, 9)
    assert pick_tactic(64, 0) == pick_tactic(64, 1) == tactics(64)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_ctas", 2), ("warp_size", 64), ("global_scratch_size", 8), ("profile_scratch_size", 8), ("tmem_size", 128),
     ("launch_cooperative_grid", True), ("launch_pdl", True)],
)  # fmt: skip
def test_kernel_that_a_plain_launch_cannot_serve_is_refused(key: str, value: object) -> None:
    check_launchable(SimpleNamespace(name="fae", **LAUNCHABLE))
    with pytest.raises(ValueError, match=f"kernel fae: got {{'{key}': {value}}}, expected"):
        check_launchable(SimpleNamespace(name="fae", **{**LAUNCHABLE, key: value}))


def test_missing_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from toprovar.plugins.flash_attention_entropy import kernel

    request: dict[str, Any] = {"target": 80, "dtype": "bf16", "width": 64, "scale": 0.75, "tactic": tactics(64)[0]}
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "fae_forward", object())
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 has replaced the Triton compiler; unset it"):
            compile_kernel(**request)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r'FAE kernels need Triton, .*run `pip install "toprovar\[tensorrt\]"`'):
        compile_kernel(**request)


def test_hash_covers_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernel_hash()
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert kernel_hash() == before
    monkeypatch.setattr(triton, "__version__", "0.0")
    assert kernel_hash() != before


def test_launch_is_counted_in_integers() -> None:
    tile = tactics(128)[0]
    assert launch_grid(2, 16, 1, tile) == (1, 32, 1)
    assert launch_grid(1, 3, 65, tile) == (2, 3, 1)
    values = dict(zip(EXTRA_ARGUMENTS, extra_arguments(16, 25, 55, 128), strict=True))
    assert values == {
        "q_stride_b": 51200, "q_stride_h": 3200, "k_stride_b": 112640, "k_stride_h": 7040,
        "v_stride_b": 112640, "v_stride_h": 7040, "o_stride_b": 51200, "o_stride_h": 3200,
        "heads": 16, "queries": 25, "keys": 55,
    }  # fmt: skip
