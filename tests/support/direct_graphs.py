"""The target `cuda` on a machine without a GPU: its programs are called where their graphs would be replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toprovar.runtime import cuda_program, kernel_archive
from toprovar.runtime.machine import Machine

A_GPU = Machine(driver="580.1", cuda="13.0", gpu="a GPU", sm=90)
"""What a bundle of the target `cuda` asks for before it runs."""


class Direct:
    """Calls where a graph would be replayed; the first two calls are those of the capture."""

    def __init__(self, call: Callable[[], object], pool: Any = None) -> None:
        self.replay = call
        call()
        call()


class _Mark:
    """An event that takes no time."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end: _Mark) -> float:
        return 0.0


def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs and engines of the target run on the CPU, where they compile no kernels."""
    monkeypatch.setattr(cuda_program, "Captured", Direct)
    monkeypatch.setattr(torch.cuda, "Event", _Mark)
    monkeypatch.setattr(kernel_archive, "kernel_folder", lambda: None)
