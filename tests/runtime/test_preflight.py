"""A bundle that cannot run says so before anything is loaded: every reason at once, each with what mends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plan_bundles import MACHINES, as_plans
from toprovar.profiles.errors import BundleError
from toprovar.profiles.manifest import EngineManifest
from toprovar.runtime.machine import Machine
from toprovar.runtime.preflight import machine_problems, preflight

FITS = MACHINES["tensorrt"]


@pytest.fixture(scope="module")
def plans(onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_plans(onnx_bundle, tmp_path_factory.mktemp("preflight") / "engine")


def manifest_of(target: str, sm: list[int]) -> Any:
    """Only what the machine is compared with."""
    version = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}[target]
    return SimpleNamespace(target=target, engine={"flavour": target, "version": version, "sm": sm})


CASES = [
    ({"flavours": {}}, "tensorrt", "tensorrt is not installed", 'pip install "tensorrt==11.4.*"'),
    ({"flavours": {"tensorrt-rtx": "1.7.1"}}, "tensorrt", "tensorrt is not installed", "pip install"),
    ({"flavours": {"tensorrt": "11.3.0.99"}}, "tensorrt", "here is 11.3.0.99, expected 11.4", "build again"),
    ({"flavours": {"tensorrt-rtx": "1.8.0.1"}}, "tensorrt-rtx", "here is 1.8.0.1, expected 1.7", "tensorrt-rtx-cu13==1.7.*"),
    ({"driver": None}, "tensorrt", "no NVIDIA driver answers", "install the driver"),
    ({"cuda": None}, "tensorrt", "torch is a build without CUDA", "pip install torch"),
    ({"driver": "550.54.14"}, "tensorrt", "the driver is 550.54.14", "580 or newer"),
    ({"sm": None}, "tensorrt", "torch sees no GPU", "CUDA_VISIBLE_DEVICES"),
    ({"sm": 120}, "tensorrt", "for sm_80, sm_89, this GPU (stand-in) is sm_120", "build-engine --target tensorrt` on this"),
    ({"sm": 70}, "tensorrt", "older than TensorRT runs on", "build-engine --target onnx"),
    ({"sm": 90, "flavours": {"tensorrt-rtx": "1.7.1"}}, "tensorrt-rtx", "TensorRT-RTX has no code", "--target tensorrt`"),
]


@pytest.mark.parametrize(("change", "target", "problem", "remedy"), CASES, ids=[case[2][:40] for case in CASES])
def test_each_problem_is_named_with_its_remedy(change: dict[str, Any], target: str, problem: str, remedy: str) -> None:
    machine = replace(FITS, **{"flavours": MACHINES[target].flavours, **change})
    (found,) = machine_problems(manifest_of(target, [80, 89]), machine)
    assert problem in found
    assert remedy in found


def test_a_patch_release_and_a_fitting_machine_pass(plans: Path) -> None:
    manifest = EngineManifest.load(plans)
    assert preflight(plans, manifest, FITS) == ()
    assert preflight(plans, manifest, replace(FITS, flavours={"tensorrt": "11.4.2.7"})) == ()


def test_all_problems_come_at_once(onnx_bundle: Path, tmp_path: Path) -> None:
    folder = as_plans(onnx_bundle, tmp_path / "engine")
    (folder / "decoder.plan").unlink()
    (folder / "schedule.yaml").write_text("")
    with pytest.raises(BundleError) as caught:
        preflight(folder, EngineManifest.load(folder), Machine())
    message = str(caught.value)
    for part in ("tensorrt is not installed", "no NVIDIA driver", "decoder.plan is missing", "schedule.yaml has 0 bytes"):
        assert part in message
    assert "\n" not in message
    assert message.count(str(folder)) == 2


def test_other_kernels_are_a_warning_that_explains(plans: Path) -> None:
    (warning,) = preflight(plans, EngineManifest.load(plans), replace(FITS, kernel_hash="def"))
    assert "hold attention kernels abc, this version would build def" in warning
    assert "they run as built" in warning


def test_the_onnx_target_asks_nothing_of_the_machine(onnx_bundle: Path) -> None:
    manifest = EngineManifest.load(onnx_bundle)
    assert machine_problems(manifest, Machine()) == []
    assert preflight(onnx_bundle, manifest, Machine()) == ()


def test_this_machine_is_read_without_tensorrt() -> None:
    """What is found is consistent; the test itself needs no GPU."""
    import sys

    before = {"tensorrt", "tensorrt_rtx"} & set(sys.modules)
    here = Machine.here()
    assert ({"tensorrt", "tensorrt_rtx"} & set(sys.modules)) == before
    assert set(here.flavours) <= {"tensorrt", "tensorrt-rtx"}
    assert (here.sm is None) == (here.gpu is None)
