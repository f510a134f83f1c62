"""Files are written whole or not at all, and only where they are said to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toprovar.profiles.strict import write_atomic


def test_a_link_at_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    """The name holds no secret; in a folder that came from a stranger, a link there led to any file of the user's."""
    victim, path = tmp_path / "victim", tmp_path / "folder" / "file"
    victim.write_bytes(b"mine")
    path.parent.mkdir()
    path.with_name(f".file.{os.getpid()}.tmp").symlink_to(victim)
    write_atomic(path, b"new")
    assert (victim.read_bytes(), path.read_bytes()) == (b"mine", b"new")
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A full disk left a file under the temporary name."""
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file", b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
