"""Kernels kept in a bundle: what comes back, whose archives are opened, and what an engine does when they cannot be kept."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from direct_graphs import A_GPU, without_a_gpu
from small_model import small_model, small_profile
from toprovar.compile.cuda_bundle import build_cuda_bundle
from toprovar.profiles.baselines import dense
from toprovar.profiles.manifest import EngineManifest
from toprovar.runtime import cuda_engine
from toprovar.runtime.cuda_engine import CudaEngine
from toprovar.runtime.kernel_archive import KernelArchive, files_of, kind_of
from toprovar.runtime.kernel_folder import INDUCTOR, PARTS, TRITON, _remove, kernel_folder
from toprovar.runtime.kernel_seal import VARIABLE, SealError, key_file, opened, sealed
from toprovar.runtime.machine import Machine
from toprovar.runtime.preflight import preflight
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

HERE = Machine(gpu="NVIDIA H100 80GB HBM3", cuda="13.0")
Begin = Callable[[], None]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Makes this process one that has just begun: no folder, no variables, a user of its own."""
    before = {variable: os.environ.get(variable) for variable in PARTS}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "settings" / "kernels.key"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def begun() -> None:
        kernel_folder.cache_clear()
        for variable in PARTS:
            os.environ.pop(variable, None)

    begun()
    yield begun
    begun()
    os.environ.update({variable: value for variable, value in before.items() if value is not None})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


def compiled(folder: Path) -> None:
    """What a compiler leaves: code, paths in JSON and in pickles, locks, and files that others still write."""
    code, kernel = folder / "inductor" / "ab" / "cab.py", folder / "triton" / "KEY" / "kernel.cubin"
    written = {
        code: b"# kernels/ab",
        code.with_suffix(".best_config"): b'{"XBLOCK": 64}',
        folder / "inductor" / "fxgraph" / "cd" / "graph": pickle.dumps({"filename": str(code), "after": [1.5, "end"]}),
        kernel: bytes(range(256)) + os.fsencode(kernel) + bytes(1000),
        kernel.with_name("__grp__kernel.json"): json.dumps({"child_paths": {kernel.name: str(kernel)}}).encode(),
        folder / "inductor" / "locks" / "cab.lock": b"",
        folder / "inductor" / "ab" / ".12.34.tmp": b"half",
        folder / "triton" / "KEY" / "tmp.pid_12_ab" / "kernel.ptx": b"half",
    }
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def kept(bundle: Path, begin: Begin) -> Path:
    """An archive, written by a process that has ended."""
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    compiled(kernel_folder())
    archive.keep()
    shutil.rmtree(kernel_folder())
    begin()
    return archive.path


def test_what_was_compiled_is_there_in_the_next_process(bundle: Path, begin: Begin) -> None:
    compiled(kernel_folder())
    first, expected = kernel_folder(), files_of(kernel_folder())
    kept(bundle, begin)
    KernelArchive(bundle, HERE).restore()
    folder = kernel_folder()
    assert folder != first
    assert files_of(folder) == expected
    assert len(expected) == 5
    kernel = folder / "triton" / "KEY" / "kernel.cubin"
    assert kernel.read_bytes() == bytes(range(256)) + os.fsencode(kernel) + bytes(1000)
    assert json.loads(kernel.with_name("__grp__kernel.json").read_text())["child_paths"] == {kernel.name: str(kernel)}
    graph = pickle.loads((folder / "inductor" / "fxgraph" / "cd" / "graph").read_bytes())
    assert graph == {"filename": str(folder / "inductor" / "ab" / "cab.py"), "after": [1.5, "end"]}
    assert not list(folder.rglob("*lock"))
    assert [os.environ[variable] for variable in (INDUCTOR, TRITON)] == [str(folder / "inductor"), str(folder / "triton")]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_archive_is_written_only_when_something_new_was_compiled(bundle: Path, begin: Begin) -> None:
    path = kept(bundle, begin)
    before = path.stat()
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    archive.keep()
    assert path.stat() == before
    (kernel_folder() / "triton" / "KEY" / "another.cubin").write_bytes(b"1")
    archive.keep()
    begin()
    KernelArchive(bundle, HERE).restore()
    assert (kernel_folder() / "triton" / "KEY" / "another.cubin").read_bytes() == b"1"
    assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_engines_of_a_process_share_its_folder(bundle: Path, tmp_path: Path, begin: Begin) -> None:
    other = tmp_path / "other"
    other.mkdir()
    kept(bundle, begin)
    first, second = KernelArchive(bundle, HERE), KernelArchive(other, HERE)
    first.restore()
    folder = kernel_folder()
    second.restore()
    second.keep()
    assert kernel_folder() == folder
    assert opened(second.path.read_bytes(), second.path) == opened(first.path.read_bytes(), first.path)


def test_each_kind_of_machine_has_its_own_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kind_of(HERE)
    assert kind.startswith("nvidia-h100-80gb-hbm3-torch-2.")
    assert set(kind) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    others = {kind_of(Machine(gpu="NVIDIA L4", cuda="13.0")), kind_of(Machine(gpu=HERE.gpu, cuda="12.8"))}
    monkeypatch.setattr(torch, "__version__", "2.99")
    assert len({kind, *others, kind_of(HERE)}) == 4


@pytest.mark.parametrize("variable", PARTS)
def test_folders_that_the_user_has_chosen_stay(
    variable: str, bundle: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept(bundle, begin)
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    archive.keep()
    assert kernel_folder() is None
    assert os.environ[variable] == str(tmp_path / "mine")
    assert not list(tmp_path.glob("toprovar-kernels-*"))


def test_folders_that_others_have_set_do_not(begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torch's compiler, and the process that began this one, whose folder goes with it."""
    own = default_cache_dir()
    others = {INDUCTOR: own, TRITON: f"{own}/triton/0"}
    gone = {name: str(tmp_path / "toprovar-kernels-0123456789" / part) for name, part in PARTS.items()}
    for values in (others, gone):
        begin()
        for variable, value in values.items():
            monkeypatch.setenv(variable, value)
        folder = kernel_folder()
        assert folder is not None
        assert {name: os.environ[name] for name in PARTS} == {name: str(folder / part) for name, part in PARTS.items()}


def test_a_chosen_folder_is_known_without_torchs_compiler(tmp_path: Path) -> None:
    """Red before: it was imported to ask for its own default, seconds of every load."""
    code = "import sys; from toprovar.runtime.kernel_folder import kernel_folder; "
    code += "print(kernel_folder(), *({'torch', 'sympy'} & set(sys.modules)))"
    here = {**os.environ, TRITON: str(tmp_path / "mine")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
    assert done.stdout.strip() == "None"


def test_another_users_archive_is_not_opened_and_overwritten(
    bundle: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(bundle, begin)
    foreign = path.read_bytes()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "my.key"))
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    (record,) = caplog.records
    for part in (str(path), str(tmp_path / "my.key"), VARIABLE):
        assert part in record.getMessage()
    assert not files_of(kernel_folder())
    archive.keep()
    assert path.read_bytes() == foreign
    compiled(kernel_folder())
    archive.keep()
    assert opened(path.read_bytes(), path) == foreign[32:]


@pytest.mark.parametrize("damage", ["empty", "cut", "turned", "stranger"])
def test_a_damaged_archive_is_told_in_one_line(
    damage: str, bundle: Path, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(bundle, begin)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    found = {"empty": b"", "cut": path.read_bytes()[:-1], "turned": bytes(content), "stranger": b"0" * 5000}
    path.write_bytes(found[damage])
    KernelArchive(bundle, HERE).restore()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text
    assert "Traceback" not in caplog.text
    assert not files_of(kernel_folder())


@pytest.mark.parametrize("name", ["../x", "/tmp/toprovar-x", "triton/../../x", "elsewhere/x", ".."])
def test_an_archive_writes_nothing_outside_its_folder(
    name: str, bundle: Path, begin: Begin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sealed with the user's own key, so only a mistake of ours could make it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("triton/first", b"1")
        archive.writestr(name, b"1")
    path = KernelArchive(bundle, HERE).path
    path.parent.mkdir()
    path.write_bytes(sealed(buffer.getvalue()))
    KernelArchive(bundle, HERE).restore()
    assert "names files outside" in caplog.text
    assert not files_of(kernel_folder())
    assert not [path for path in (tmp_path / "x", Path("/tmp/toprovar-x")) if path.exists()]


@pytest.mark.parametrize("obstacle", ["no folder of kernels", "no bundle", "no key", "no space"])
def test_kernels_that_cannot_be_kept_cost_a_line(
    obstacle: str,
    bundle: Path,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Modes of files do not stop root, who runs tests in containers; so other things stand in the way."""
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    compiled(kernel_folder())
    if obstacle == "no folder of kernels":
        (bundle / "kernels").write_bytes(b"")
    elif obstacle == "no bundle":
        bundle.rmdir()
    elif obstacle == "no key":
        (tmp_path / "settings").write_bytes(b"")
    else:
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    archive.keep()
    archive.keep()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(archive.path) in record.getMessage()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".zip", ".tmp") and "toprovar-kernels" not in str(path)]
    assert bundle.exists() == (obstacle != "no bundle")


def test_a_long_path_of_temporary_files_is_told(
    bundle: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    archive = KernelArchive(bundle, HERE)
    archive.restore()
    assert "set TMPDIR" in caplog.text
    assert str(long) in caplog.text
    assert INDUCTOR not in os.environ


def test_only_the_process_that_made_a_folder_removes_it(begin: Begin) -> None:
    folder = kernel_folder()
    _remove(folder, os.getpid() + 1)
    assert folder.is_dir()
    _remove(folder, os.getpid())
    assert not folder.exists()


def test_a_key_is_made_once_and_for_its_user_alone(begin: Begin) -> None:
    content = sealed(b"kernels")
    assert opened(content, Path("x.zip")) == b"kernels"
    assert (stat.S_IMODE(key_file().stat().st_mode), key_file().stat().st_size) == (0o600, 32)
    assert sealed(b"kernels") == content
    assert [path.name for path in key_file().parent.iterdir()] == [key_file().name]
    key_file().unlink()
    assert sealed(b"kernels")[:32] != content[:32]


def test_keys_that_others_can_use_are_refused(begin: Begin) -> None:
    sealed(b"")
    for mode in (0o640, 0o604, 0o620):
        key_file().chmod(mode)
        with pytest.raises(SealError, match="chmod 600"):
            sealed(b"")
    key_file().chmod(0o600)
    key_file().write_bytes(b"short")
    with pytest.raises(SealError, match="expected 32 bytes; remove it"):
        sealed(b"")


def test_where_the_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    for settings, folder in ((str(tmp_path / "s"), tmp_path / "s"), ("s", tmp_path / ".config"), ("", tmp_path / ".config")):
        monkeypatch.setenv("XDG_CONFIG_HOME", settings)
        assert key_file() == folder / "toprovar" / "kernels.key"
    monkeypatch.setenv(VARIABLE, "/run/secrets/kernels")
    assert key_file() == Path("/run/secrets/kernels")


def small_bundle(folder: Path) -> Path:
    build_cuda_bundle(small_model(), dense(small_profile()), folder, {"kind": "words"}, lambda _: None)
    return folder


def test_a_bundle_with_kernels_is_the_bundle_that_was_built(tmp_path: Path, begin: Begin) -> None:
    """It is verified, copied and built over as before; a bundle built anew has no kernels."""
    folder = small_bundle(tmp_path / "engine")
    path = kept(folder, begin)
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    for place in (folder, copied):
        preflight(place, EngineManifest.load(place))
    KernelArchive(copied, HERE).restore()
    assert len(files_of(kernel_folder())) == 5
    small_bundle(folder)
    assert not path.exists()


def test_an_engine_restores_before_it_compiles_and_keeps_each_new_graph(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    without_a_gpu(monkeypatch)
    monkeypatch.setattr(KernelArchive, "restore", lambda archive: happened.append(f"restore {archive.path.parent.parent.name}"))
    monkeypatch.setattr(KernelArchive, "keep", lambda archive: happened.append("keep"))
    monkeypatch.setattr(cuda_engine, "_load", lambda *a, load=cuda_engine._load: happened.append("load") or load(*a))
    monkeypatch.setattr(cuda_engine, "make_program", lambda *_: happened.append("capture") or SimpleNamespace())
    engine = CudaEngine(small_bundle(tmp_path / "engine"), A_GPU, torch.device("cpu"))
    assert happened == ["restore engine", "load"]
    text = torch.zeros(2, 5, small_profile().transformer.text_channels)
    engine.tell = lambda line: happened.append(line.split()[0])
    for batch in (1, 1, 2, 1):
        engine._program(text, batch)
    assert happened[2:] == ["capturing", "capture", "keep", "captured"] * 2


def test_the_next_process_compiles_nothing(bundle: Path, tmp_path: Path) -> None:
    """torch's graphs and Triton's kernels, by the compilers themselves, from another folder than they were compiled in."""
    pytest.importorskip("triton", reason="triton is not installed")
    given = {name: value for name, value in os.environ.items() if name not in (*PARTS, "TRITON_INTERPRET")}
    # no processes that compile, and no GPU, which a forked process cannot look at
    given |= {
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        VARIABLE: str(tmp_path / "key"),
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "compile_and_keep.py"), str(bundle)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["folder"] != second["folder"]
    assert not list(tmp_path.glob("toprovar-kernels-*"))
    assert (first["kernels"], second["kernels"]) == ([False], [True])
    assert (first["inductor"]["fxgraph_cache_miss"], second["inductor"]["fxgraph_cache_hit"]) == (1, 1)
    assert second["aot_autograd"]["autograd_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in second["inductor"]
