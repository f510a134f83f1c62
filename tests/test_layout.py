"""The package: every folder is listed, nothing stray lies at the root, imports point one way, heavy ones come late."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ALLOWED = {
    "profiles": {"profiles"},
    "plugins": {"plugins", "profiles"},
    "models": {"models", "plugins", "profiles"},
    "calibrate": {"calibrate", "models", "plugins", "profiles"},
    "compile": {"compile", "models", "plugins", "profiles"},
    "runtime": {"runtime", "models", "plugins", "profiles"},
    "benchmarks": {"benchmarks", "runtime", "compile", "calibrate", "models", "plugins", "profiles"},
}
ROOT_FILES = {
    "__init__.py",
    "cli.py",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "MANIFEST.in",
    ".gitignore",
}


def _sources(root: Path) -> list[Path]:
    return [path for package in ALLOWED for path in sorted((root / package).rglob("*.py"))]


def _imported(path: Path, root: Path) -> set[str]:
    """Stages that a file imports, from anywhere in it."""
    here = path.relative_to(root).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            target = (*base, *(node.module or "").split("."))
            found.add(target[0] if target[0] else node.names[0].name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toprovar"):
            pytest.fail(f"{path}: imports inside the package are relative")
    return {name for name in found if name in ALLOWED}


def test_imports_point_one_way(root: Path) -> None:
    wrong = {
        str(path.relative_to(root)): sorted(extra)
        for path in _sources(root)
        if (extra := _imported(path, root) - ALLOWED[path.relative_to(root).parts[0]])
    }
    assert not wrong


def test_every_package_is_listed(root: Path) -> None:
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(("toprovar", *p.parent.relative_to(root).parts)) for p in _sources(root) if p.name == "__init__.py"}
    assert listed == {"toprovar", *found}


def test_nothing_stray_at_the_root(root: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert top - set(ALLOWED) - {"tests", ".ci"} <= ROOT_FILES


def test_files_stay_readable(root: Path) -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in _sources(root))
    assert lengths[len(lengths) // 2] < 150
    assert lengths[-1] <= 300


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("toprovar.profiles.schedule", ("torch", "onnxruntime", "datasets")),
        ("toprovar.cli", ("torch", "onnx", "onnxruntime", "datasets", "matplotlib")),
        ("toprovar.calibrate.cli", ("torch", "datasets", "matplotlib")),
        ("toprovar.compile.cli", ("torch", "onnx")),
        ("toprovar.runtime.cli", ("torch", "onnxruntime", "transformers")),
        ("toprovar.runtime.engine", ("torch", "onnx", "datasets")),
        ("toprovar.runtime.open_engine", ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx")),
        ("toprovar.runtime.tensorrt_engine", ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx")),
    ],
)
def test_heavy_packages_come_late(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {banned!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wheel_holds_all_that_runs(root: Path, tmp_path: Path) -> None:
    """Built without the network; the tiny model and the data files must be inside."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    expected = {f"toprovar/{path.relative_to(root).as_posix()}" for path in _sources(root)}
    expected |= {f"toprovar/profiles/{p.name}" for p in (root / "profiles").glob("*.yaml")}
    expected |= {f"toprovar/profiles/tiny/{p.name}" for p in (root / "profiles" / "tiny").iterdir()}
    expected |= {"toprovar/__init__.py", "toprovar/cli.py", "toprovar/calibrate/report.html", "toprovar/profiles/skipvar.json"}
    expected |= {"toprovar/compile/build_report.html", "toprovar/profiles/pages.css"}
    assert expected <= names, sorted(expected - names)
    assert not any(name.startswith(("toprovar/tests", "tests")) for name in names)
