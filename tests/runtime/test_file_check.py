"""The check of a bundle's files beside the imports: what it finds is what a check on the spot finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toprovar.profiles.errors import BundleError
from toprovar.profiles.manifest import EngineManifest
from toprovar.runtime import file_check
from toprovar.runtime.file_check import begin_file_check, file_problems
from toprovar.runtime.open_engine import open_engine


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_check, "LARGE", 1)
    monkeypatch.setattr(file_check, "PIECE", 1 << 12)


def test_a_whole_bundle_has_no_problems(onnx_bundle: Path) -> None:
    checked = begin_file_check(onnx_bundle, EngineManifest.load(onnx_bundle))
    assert checked() == file_problems(onnx_bundle, EngineManifest.load(onnx_bundle)) == []


def test_problems_are_those_of_a_check_on_the_spot(onnx_bundle: Path, tmp_path: Path) -> None:
    """A file that is gone, which nothing can read ahead, and one of the same size with another byte."""
    folder = Path(shutil.copytree(onnx_bundle, tmp_path / "engine"))
    manifest = EngineManifest.load(folder)
    (folder / "decoder.onnx").unlink()
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    (problem,) = begin_file_check(folder, manifest)()
    assert "decoder.onnx is missing" in problem
    assert "weights.safetensors has another SHA-256" in problem
    assert [problem] == file_problems(folder, manifest)
    with pytest.raises(BundleError, match=r"decoder\.onnx is missing; weights\.safetensors has another SHA-256"):
        open_engine(folder)


def test_an_error_of_the_check_itself_is_raised_to_who_waits(onnx_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = EngineManifest.load(onnx_bundle)

    def broken(*_: object) -> list[str]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(file_check, "file_problems", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        begin_file_check(onnx_bundle, manifest)()
