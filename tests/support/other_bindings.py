"""Bindings of other TensorRT versions, each in a process of its own: two cannot live in one.

`make bindings` puts them into `.venv/bindings`, a folder a version; TOPROVAR_TENSORRT_BINDINGS names other folders instead,
parted as in PATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_link_stubs import missing

FETCHED = Path(__file__).parents[2] / ".venv" / "bindings"
NAMED = [Path(found) for found in os.environ.get("TOPROVAR_TENSORRT_BINDINGS", "").split(os.pathsep) if found]
FOLDERS = NAMED or sorted(FETCHED.glob("*"))
each_folder = pytest.mark.parametrize("folder", FOLDERS or [None], ids=[folder.name for folder in FOLDERS] or ["none"])


def run_with(folder: Path | None, *arguments: str) -> str:
    """Standard output of Python with the bindings of one folder; skips where there is none."""
    if folder is None:
        pytest.skip(f"no bindings of other versions in {FETCHED}; `make bindings` fetches them")
    if missing():
        pytest.skip(missing())
    support = Path(__file__).parent
    paths = [str(folder), str(support), *(str(support.parent / name) for name in ("runtime", "compile"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
