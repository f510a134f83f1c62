"""The stand-in of TensorRT has no method or argument that NVIDIA's own bindings lack, so neither has the run time."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import tensorrt_run_time as stand_in
from other_bindings import each_folder, run_with
from tensorrt_link_stubs import missing, stubbed_tensorrt
from toprovar.runtime.plans import TORCH_NAMES

CLASSES = {"Runtime": stand_in.Runtime, "ICudaEngine": stand_in.CudaEngine, "IExecutionContext": stand_in.Context}


def hold_to(real: Any, classes: dict[str, type]) -> None:
    """Every public method or property of a stand-in is in the real class, with the same arguments in the same order."""
    own = {"session", "names", "weights", "inputs", "outputs", "addresses", "trt", "path"}
    for class_name, ours in classes.items():
        for name, method in inspect.getmembers(ours):
            if name.startswith("_") or name in own:
                continue
            theirs = getattr(getattr(real, class_name), name)
            if isinstance(method, property):
                assert isinstance(theirs, property), name
                continue
            overloads = re.findall(rf"\b{name}\(self: [\w.]+(.*?)\) -> ", theirs.__doc__ or "")
            arguments = [re.findall(r", (\w+): ", overload) for overload in overloads]
            assert list(inspect.signature(method).parameters)[1:] in arguments, (name, arguments)
    assert hasattr(real.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(real.TensorIOMode, "INPUT")
    assert hasattr(real.Logger, "WARNING")
    assert {*TORCH_NAMES} <= {*real.DataType.__members__}


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_stand_in_has_the_signatures_of_tensorrt() -> None:
    with stubbed_tensorrt() as real:
        hold_to(real, CLASSES)
        assert not hasattr(real.IExecutionContext, "is_stream_capturable")


def test_stand_in_has_the_signatures_of_tensorrt_rtx() -> None:
    hold_to(pytest.importorskip("tensorrt_rtx"), {**CLASSES, "IExecutionContext": stand_in.RtxContext})


@each_folder
def test_stand_in_has_the_signatures_of_other_versions(folder: Path | None) -> None:
    code = (
        "import tempfile, pathlib, tensorrt_link_stubs as stubs\n"
        "with tempfile.TemporaryDirectory() as folder: stubs.build_stubs(pathlib.Path(folder))\n"
        "import tensorrt_bindings, test_tensorrt_signatures as tests\n"
        "tests.hold_to(tensorrt_bindings, tests.CLASSES); print(tensorrt_bindings.__version__)"
    )
    assert re.match(r"1\d\.\d+\.\d+\.\d+", run_with(folder, "-c", code))
