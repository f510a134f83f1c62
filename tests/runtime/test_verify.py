"""`doctor --verify-tensorrt` and `inspect`, with the stand-in where TensorRT would be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice
from plan_bundles import MACHINES, as_plans
from tensorrt_run_time import RecordingTensorRT
from toprovar import cli
from toprovar.profiles.errors import BundleError, ToprovarError
from toprovar.profiles.manifest import EngineManifest
from toprovar.runtime import doctor, verify
from toprovar.runtime.machine import Machine
from toprovar.runtime.open_engine import open_engine
from toprovar.runtime.tensorrt_engine import TensorRTEngine


@pytest.fixture
def stand_in(onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Building copies the small bundle, opening takes the stand-in; `spoil` changes a bundle after it was built."""
    settings: dict[str, Any] = {"spoil": lambda folder: None, "commands": []}

    def build(arguments: Sequence[str]) -> None:
        settings["commands"].append(arguments)
        target, out = arguments[arguments.index("--target") + 1], Path(arguments[-1])
        if target == "onnx":
            shutil.copytree(onnx_bundle, out)
        else:
            settings["spoil"](as_plans(onnx_bundle, out, target))

    def opened(folder: Path) -> Any:
        target = EngineManifest.load(folder).target
        if target == "onnx":
            return open_engine(folder, 1)
        trt = RecordingTensorRT(target == "tensorrt-rtx")
        return TensorRTEngine(folder, MACHINES[target], HostDevice(trt), trt, threads=1)

    monkeypatch.setattr(verify, "_build", build)
    monkeypatch.setattr(verify, "open_engine", opened)
    return settings


def usable(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse() -> str:
        raise doctor.UnusableError("no GPU")

    for name in doctor.FLAVOURS.values():
        check: Callable[[], str] = (lambda: "11.4") if name in names else refuse
        monkeypatch.setitem(doctor.CHECKS, name, check)


def test_nothing_usable_says_so_for_each_flavour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: dict[str, Any]
) -> None:
    usable(monkeypatch)
    assert cli.main(["doctor", "--verify-tensorrt"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["tensorrt: no GPU", "tensorrt-rtx: no GPU"]
    assert "nothing to verify" in lines[2]
    assert not stand_in["commands"]


def test_what_agrees_is_told_in_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: dict[str, Any]
) -> None:
    usable(monkeypatch, "TensorRT", "TensorRT-RTX")
    assert cli.main(["doctor", "--verify-tensorrt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["tensorrt", "tensorrt-rtx"]
    assert all(line.split()[1] == "fp32" and line.endswith("agrees") for line in lines[-2:])
    assert [command[:4] for command in stand_in["commands"]] == [
        ["--policy", "noguide-2", "--target", target] for target in ("onnx", "tensorrt", "tensorrt-rtx")
    ]


def test_a_plan_that_computes_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: dict[str, Any]
) -> None:
    """Weights with other numbers, and the manifest's hash with them: only the images can tell."""

    def spoil(folder: Path) -> None:
        engine_weights = TensorRTEngine._upload

        def scrambled(self: TensorRTEngine) -> Any:
            return {name: tensor.flip(0).contiguous() for name, tensor in engine_weights(self).items()}

        monkeypatch.setattr(TensorRTEngine, "_upload", scrambled)

    stand_in["spoil"] = spoil
    usable(monkeypatch, "TensorRT")
    assert cli.main(["doctor", "--verify-tensorrt"]) == 1
    assert "differs, below" in capsys.readouterr().out.splitlines()[-1]


def test_a_build_that_fails_does_not_stop_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stand_in: dict[str, Any]
) -> None:
    def spoil(folder: Path) -> None:
        if folder.name == "tensorrt":
            raise ToprovarError("the builder says no")

    stand_in["spoil"] = spoil
    usable(monkeypatch, "TensorRT", "TensorRT-RTX")
    assert cli.main(["doctor", "--verify-tensorrt"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-2].endswith("failed")
    assert captured.out.splitlines()[-1].endswith("agrees")
    assert "the builder says no" in captured.err


def test_the_command_is_run_as_a_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToprovarError, match="build-engine ended with 2"):
        verify._build(["--policy", "nothing-3", "--out", str(tmp_path / "out")])
    assert "build-engine: error" in capfd.readouterr().err


def test_inspect_tells_all_of_a_plan_bundle(onnx_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = as_plans(onnx_bundle, tmp_path / "engine")
    assert cli.main(["inspect", str(folder)]) == 0
    text = capsys.readouterr().out
    size = (folder / "decoder.plan").stat().st_size
    for part in (
        "target tensorrt, fp32",
        "tensorrt 11.4.0.106",
        "sm_80, sm_89",
        "abc",
        "4 images, 64 text tokens",
        "--workspace 2.5",
    ):
        assert part in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("decoder.plan") and "1.5" in line]
    assert row == ["decoder.plan", str(size), "12", "1", "1.5"]


def test_a_target_opens_its_own_engine(onnx_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = as_plans(onnx_bundle, tmp_path / "engine")
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls()))
    with pytest.raises(BundleError, match=r"tensorrt is not installed.*no NVIDIA driver answers"):
        open_engine(folder)
    assert cli.main(["run", "--engine", str(folder), "--prompt", "a star"]) == 2
    text = (folder / "manifest.json").read_text().replace('"target": "tensorrt"', '"target": "abacus"')
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="target 'abacus', this version knows onnx, cuda, tensorrt, tensorrt-rtx"):
        open_engine(folder)


def test_the_onnx_engine_opens_a_bundle(onnx_bundle: Path) -> None:
    engine = open_engine(onnx_bundle, 1)
    assert type(engine).__module__ == "toprovar.runtime.engine"
    assert engine.unconditional.dtype == np.float32
