"""The ONNX exporter of torch, spared what it does anew at each export: its table of operators takes a second to make."""

from __future__ import annotations

import functools

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry


def keep_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the table once; our exports add the same entries to it each time."""
    made = functools.cache(ONNXRegistry.from_torchlib)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(made))
