"""Shared fixtures: one thread a worker, graphs exported once a run, and where the repository is."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exporter import keep_operators
from shared_graphs import SharedGraphs
from toprovar.calibrate.search import search
from toprovar.compile.export_cache import reusing_graphs

ROOT = Path(__file__).parent.parent
LONG_FILES = (
    "matrix",
    "tiny_plans",
    "plans",
    "interpreter",
    "plan_families",
    "search",
    "sweep",
    "bundle",
    "rungs",
    "adaptive",
    "reuse",
    "report",
    "onnx_costs",
)
"""These run first: a worker that began the longest file last would leave the other one idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Under pytest-xdist each worker takes one core; more threads than cores cost more than they give."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _few_collections() -> None:
    """A trace makes millions of objects, and looking again and again for those to free takes a tenth of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _few_neighbours() -> Iterator[None]:
    """Most of what a search runs at its end; its own tests ask for more (`calibrate/test_refine.py`)."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(search, "NEIGHBOURS", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exporting takes most of the tests' time, and most of their bundles share most of their graphs."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # a worker's folder is in the run's
        folder = folder.parent
    with pytest.MonkeyPatch.context() as monkeypatch, reusing_graphs(SharedGraphs(folder / "graphs")):
        keep_operators(monkeypatch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines on a GPU keep their kernels, sealed with a key; it is not made among the user's settings."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TOPROVAR_KERNELS_KEY", str(tmp_path_factory.mktemp("key") / "kernels.key"))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT
