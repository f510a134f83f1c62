"""Kernels run on the GPU, or on the CPU in Triton's interpreter, in a process of its own (`../test_interpreter.py`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton", reason="triton is not installed")
    if INTERPRETED:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU; test_interpreter.py runs this in Triton's interpreter")
    return "cuda"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN, or -1 for integers, so that an output left unwritten fails."""
    empty: Callable[..., torch.Tensor] = torch.empty

    def filled(*args: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*args, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", filled)
