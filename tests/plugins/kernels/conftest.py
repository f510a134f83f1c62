"""Kernels run on the GPU, or on the CPU in Triton's interpreter, in a process of its own (`../test_interpreter.py`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

_PLAIN = SimpleNamespace(params={})
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The interpreter is slow and does not compute in bf16 as a GPU does: fp16 stands for both."""
    if not INTERPRETED:
        return
    gone = [item for item in items if torch.bfloat16 in getattr(item, "callspec", _PLAIN).params.values()]
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in gone]


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
