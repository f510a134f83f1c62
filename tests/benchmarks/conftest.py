"""Graphs that the bundles of these tests share are exported once a worker: they compare engines, not exports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from toprovar.compile.export_cache import reusing_graphs


@pytest.fixture(scope="package", autouse=True)
def _exported_once() -> Iterator[None]:
    with reusing_graphs():
        yield
