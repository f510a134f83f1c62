"""`toprovar doctor`: which implementations this machine can use, with versions, and the reason for each that it cannot."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from ..profiles.tables import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    """Print one line an implementation."""
    del args
    print(f"python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    checks: dict[str, Callable[[], str]] = {
        "torch, CPU": lambda: f"torch {version('torch')}",
        "torch, CUDA": _cuda,
        "ONNX Runtime, CPU": lambda: f"onnxruntime {version('onnxruntime')}",
        "T5 text encoder": lambda: f"transformers {version('transformers')}",
    }
    rows = [["implementation", "usable", "version or reason"]]
    for name, check in checks.items():
        try:
            rows.append([name, "yes", check()])
        except PackageNotFoundError as problem:
            rows.append([name, "no", f"{problem.name} is not installed"])
        except RuntimeError as problem:
            rows.append([name, "no", str(problem)])
    print(table(rows))
    return 0


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU")
    return f"torch {torch.__version__}, {torch.cuda.get_device_name()}"
