"""The kernels' own tests, run in Triton's interpreter: it must be chosen before triton is imported, hence the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the same tests run on it")
    folder = Path(__file__).parent / "kernels"
    # it rounds bf16 its own way, so attention stands for all in halves; it has one order of things, and takes a second a case
    left_out = ("torch.float16", "(torch.bfloat16 and not float64)", "(selection_matches and (4096 or 144))", "two_runs")
    chosen = ["-k", " and ".join(f"not {name}" for name in left_out)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, str(folder)]
    # it interprets on one core; more threads for its references only take those of the tests beside it
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder.parents[2])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 20
