"""A bundle's files against their hashes, on threads of their own while packages are imported and the GPU wakes up.

Several threads read large files ahead of the one that hashes: a disk serves several requests faster than one, and what loads
the weights afterwards finds them in the system's cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from ..profiles.errors import ToprovarError
from ..profiles.manifest import SCHEDULE, EngineManifest
from ..profiles.schedule import Schedule

Problems = Callable[[], list[str]]
READERS, PIECE, LARGE = 2, 1 << 24, 1 << 28
"""Threads that read ahead, bytes that each reads at a time, and bytes of a file from which on they do."""


def begin_file_check(folder: Path, manifest: EngineManifest) -> Problems:
    """Begin to compare a bundle with its manifest.

    Returns:
        What waits for the end, then returns each problem in one sentence.
    """
    found: Future[list[str]] = Future()

    def check() -> None:
        try:
            found.set_result(file_problems(folder, manifest))
        # whatever it is, who waits must hear of it
        except BaseException as problem:
            found.set_exception(problem)

    # daemons: a command that is refused for another reason ends at once
    for name, entry in manifest.files.items():
        for start in range(READERS if entry.bytes >= LARGE else 0):
            Thread(target=_read_ahead, args=(folder / name, start), daemon=True).start()
    Thread(target=check, daemon=True).start()
    return found.result


def file_problems(folder: Path, manifest: EngineManifest) -> list[str]:
    """Files that are missing or differ from what was built; empty where all is well."""
    try:
        manifest.verify(folder)
        found = Schedule.load(folder / SCHEDULE).digest()
    except ToprovarError as problem:
        return [str(problem)]
    if found != manifest.schedule_sha256:
        return [f"{folder}: {SCHEDULE} is not the schedule that was built; build the bundle again"]
    return []


def _read_ahead(path: Path, start: int) -> None:
    """Every `READERS`th piece of a file, into the system's cache."""
    # what cannot be read, the check tells
    with contextlib.suppress(OSError), path.open("rb") as file:
        at = start * PIECE
        while os.pread(file.fileno(), PIECE, at):
            at += READERS * PIECE
