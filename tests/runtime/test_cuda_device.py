"""The GPU's side of the run time, alone: streams, marks, captures that replay and captures that are refused."""

from __future__ import annotations

import pytest
import torch
from toprovar.runtime.device import ALIGNMENT, CudaDevice, EnqueueError, aligned

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_a_capture_replays_on_the_same_memory() -> None:
    device = CudaDevice()
    with device.stream():
        values = torch.ones(1000, device="cuda")
        device.synchronize()
        replay = device.capture(lambda: torch._foreach_add_([values], 1))
        assert replay is not None
        first = device.mark()
        replay()
        replay()
        second = device.mark()
        device.synchronize()
    assert values.unique().tolist() == [3.0]
    assert 0 < device.milliseconds(first, second) < 1000


def test_a_refused_capture_leaves_the_device_usable() -> None:
    """TensorRT's refusal comes as an exception from inside the capture."""
    device = CudaDevice()
    with device.stream():
        values = torch.zeros(1000, device="cuda")

    def refused() -> None:
        values.add_(1)
        raise EnqueueError("no")

    with device.stream():
        assert device.capture(refused) is None
        values.add_(5)
        device.synchronize()
    assert values.unique().tolist() == [5.0]


def test_memory_is_aligned() -> None:
    assert {aligned(n, "cuda").data_ptr() % ALIGNMENT for n in (1, 100, 10**7)} == {0}
