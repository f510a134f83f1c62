"""What an evaluation has seen so far, one JSON line an image, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...models.tiny.scenes import Detection
from ...profiles.errors import ToprovarError
from ...profiles.manifest import MANIFEST
from .outcome import Job, Outcome


class Journal:
    """Images that all engines of one evaluation have drawn, in a file beside that of its results.

    Args:
        path: The file; one that is there already is read and continued.
        facts: All that an image's outcomes depend on beside its prompt and seed, as JSON takes it.

    Raises:
        ToprovarError: The file is no journal, or one of other facts.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self._known: dict[Job, list[Outcome]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        head = _line({"format": 1, **facts})
        content = path.read_bytes() if path.exists() else b""
        # a line that was cut off is drawn again
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            self._read(whole.splitlines(keepends=True), head)
        self._file = path.open("r+b" if content else "wb")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not whole:
            self._write(head)

    def __len__(self) -> int:
        return len(self._known)

    def outcomes(self, job: Job) -> list[Outcome] | None:
        """Of one image, an engine each; None where it was not drawn."""
        return self._known.get(job)

    def add(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        """Keep what all engines made of one image."""
        self._known[job] = list(outcomes)
        self._write(_line({"job": asdict(job), "outcomes": [asdict(outcome) for outcome in outcomes]}))

    def end(self) -> None:
        """The evaluation is complete, and its results are written."""
        self._file.close()
        self.path.unlink()

    def _read(self, lines: Sequence[bytes], head: bytes) -> None:
        if lines[0] != head:
            raise ToprovarError(
                f"{self.path}: holds an unfinished evaluation of other engines, or with other flags; finish that one, remove "
                "the file, or give another --out"
            )
        try:
            for line in map(json.loads, lines[1:]):
                self._known[Job(**line["job"])] = [_outcome(fields) for fields in line["outcomes"]]
        except (ValueError, KeyError, TypeError) as problem:
            raise ToprovarError(f"{self.path}: cannot be read as an unfinished evaluation ({problem}); remove it") from problem

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def bundle_digest(folder: Path) -> str:
    """SHA-256 of a bundle's manifest, which names every file of it by its own."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _outcome(fields: Mapping[str, Any]) -> Outcome:
    found = fields["detections"]
    detections = None if found is None else tuple(Detection(**one) for one in found)
    return Outcome(**{**fields, "detections": detections})


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, sort_keys=True) + "\n").encode()
