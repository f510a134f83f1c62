"""Graphs that all workers of a test run share: the first that needs one exports it, into a folder of the run."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Hashable
from pathlib import Path

from toprovar.compile.export_cache import Kept


class SharedGraphs(dict[Hashable, Kept]):
    """What `reusing_graphs` keeps, as files; two workers that make the same graph at once write the same."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _file(self, key: object) -> Path:
        return self.folder / hashlib.sha256(repr(key).encode()).hexdigest()

    def __contains__(self, key: object) -> bool:
        return self._file(key).exists()

    def __getitem__(self, key: Hashable) -> Kept:
        kept: Kept = pickle.loads(self._file(key).read_bytes())
        return kept

    def __setitem__(self, key: Hashable, kept: Kept) -> None:
        part = self._file(key).with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(kept))
        part.replace(self._file(key))
