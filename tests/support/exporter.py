"""The ONNX exporter of torch, spared what it does anew at each export: its tables of operators take a second to make."""

from __future__ import annotations

import functools

import pytest
from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry


def keep_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tables once; our exports add the same entries to them each time."""
    made = functools.cache(ONNXRegistry.from_torchlib)
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(made))
    # torch releases name it as they like
    listed = getattr(utils, "_materialize_cpp_cia_ops", None)
    if listed is not None:
        monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(listed))
