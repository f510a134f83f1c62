"""`toprovar doctor`: which implementations this machine can use, with versions, and the reason for each that it cannot."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from ..profiles.tables import table

TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
RTX_PACKAGES = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")


class UnusableError(Exception):
    """Why an implementation cannot be used here, and what would mend it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    """Print one line an implementation."""
    del args
    print(f"python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    rows = [["implementation", "usable", "version or reason"]]
    for name, check in CHECKS.items():
        try:
            rows.append([name, "yes", check()])
        except PackageNotFoundError as problem:
            rows.append([name, "no", f"{problem.name} is not installed"])
        except UnusableError as problem:
            rows.append([name, "no", str(problem)])
    print(_left(rows))
    return 0


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
    return f"{found}: attention with entropy, token selection"


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
    found = _imported("tensorrt", TENSORRT_PACKAGES, "run `pip install tensorrt` where there is an NVIDIA GPU")
    _cuda()
    return found


def _tensorrt_rtx() -> str:
    found = _imported("tensorrt_rtx", RTX_PACKAGES, "run `pip install tensorrt-rtx`")
    _cuda()
    import torch

    if torch.cuda.get_device_capability() in ((9, 0), (10, 0)):
        raise UnusableError(f"{found} has no code for this GPU (sm_90, sm_100 are not among its targets)")
    return found


CHECKS: dict[str, Callable[[], str]] = {
    "torch, CPU": lambda: f"torch {version('torch')}",
    "torch, CUDA": _cuda,
    "ONNX Runtime, CPU": lambda: f"onnxruntime {version('onnxruntime')}",
    "FAE and token kernels (Triton)": _kernels,
    "FAE kernel for Hopper": _hopper,
    "TensorRT plugin, ahead of time": _ahead_of_time,
    "TensorRT": _tensorrt,
    "TensorRT-RTX": _tensorrt_rtx,
    "T5 text encoder": lambda: f"transformers {version('transformers')}",
}
