"""`toprovar doctor`: which implementations this machine can use, with versions, and the reason for each that it cannot."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from ..profiles.tables import table
from .machine import PACKAGES
from .preflight import RTX_WITHOUT


class UnusableError(Exception):
    """Why an implementation cannot be used here, and what would mend it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify-tensorrt", action="store_true", help="build the tiny model for each flavour, draw, compare with onnx"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line an implementation, or verify those that build plans."""
    if args.verify_tensorrt:
        from .verify import verify

        return verify({target: _reason(CHECKS[name]) for target, name in FLAVOURS.items()})
    print(f"python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    rows = [["implementation", "usable", "version or reason"]]
    for name, check in CHECKS.items():
        try:
            rows.append([name, "yes", check()])
        except (PackageNotFoundError, UnusableError) as problem:
            rows.append([name, "no", _told(problem)])
    print(_left(rows))
    return 0


def _told(problem: Exception) -> str:
    return f"{problem.name} is not installed" if isinstance(problem, PackageNotFoundError) else str(problem)


def _reason(check: Callable[[], str]) -> str:
    """Why it cannot be used here, or nothing."""
    try:
        check()
    except (PackageNotFoundError, UnusableError) as problem:
        return _told(problem)
    return ""


def _left(rows: list[list[str]]) -> str:
    """The table with its last column, which is prose, to the left."""
    widest = max(len(row[2]) for row in rows)
    return table([[first, second, third.ljust(widest)] for first, second, third in rows])


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise UnusableError(f"torch {torch.__version__} sees no GPU; install a CUDA build of torch and NVIDIA's driver")
    major, minor = torch.cuda.get_device_capability()
    return f"torch {torch.__version__}, {torch.cuda.get_device_name()}, sm_{major}{minor}"


def _kernels() -> str:
    found = f"triton {version('triton')}"
    _cuda()
    import torch

    if torch.cuda.get_device_capability() < (8, 0):
        raise UnusableError(f"{found}, but the GPU is older than sm_80 (Ampere); the definition in torch is used instead")
    return f"{found}: attention, blocks, decoder, token selection"


def _hopper() -> str:
    _kernels()
    import torch

    from ..plugins.flash_attention_entropy.launch import hopper_problem

    if torch.cuda.get_device_capability() != (9, 0):
        raise UnusableError("the GPU is not sm_90 (H100, H200); the portable kernel is used instead")
    problem = hopper_problem()
    if problem is not None:
        raise UnusableError(problem)
    return f"triton {version('triton')}, Gluon"


def _ahead_of_time() -> str:
    return f"triton {version('triton')} compiles it for sm_80 to sm_120; needs no GPU"


def _imported(module: str, packages: tuple[str, ...], remedy: str) -> str:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as problem:
        raise UnusableError(f"{module} is not installed; {remedy}") from problem
    except (ImportError, OSError) as problem:
        installed = next((f"{name} {number}" for name in packages if (number := _installed(name))), module)
        raise UnusableError(f"{installed} does not load: {str(problem).splitlines()[0]}") from problem
    return f"{module} {found.__version__}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tensorrt() -> str:
    found = _imported("tensorrt", PACKAGES["tensorrt"], "run `pip install tensorrt` where there is an NVIDIA GPU")
    _cuda()
    return found


def _tensorrt_rtx() -> str:
    found = _imported("tensorrt_rtx", PACKAGES["tensorrt-rtx"], "run `pip install tensorrt-rtx-cu13`")
    _cuda()
    import torch

    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor in RTX_WITHOUT:
        raise UnusableError(f"{found} has no code for this GPU, sm_{major}{minor}")
    return found


CHECKS: dict[str, Callable[[], str]] = {
    "torch, CPU": lambda: f"torch {version('torch')}",
    "torch, CUDA": _cuda,
    "ONNX Runtime, CPU": lambda: f"onnxruntime {version('onnxruntime')}",
    "target cuda, kernels (Triton)": _kernels,
    "FAE kernel for Hopper": _hopper,
    "TensorRT plugin, ahead of time": _ahead_of_time,
    "TensorRT": _tensorrt,
    "TensorRT-RTX": _tensorrt_rtx,
    "T5 text encoder": lambda: f"transformers {version('transformers')}",
}
FLAVOURS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""Targets that build plans, and the check that tells whether they can run here."""
