"""Shared fixtures: one thread a worker, and where the repository is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Under pytest-xdist each worker takes one core; more threads than cores cost more than they give."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT
