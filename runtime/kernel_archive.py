"""What was compiled and tuned for a bundle, kept in the bundle: the next load finds it, also on another machine of its kind.

One file holds all that torch's compiler and Triton have left in the process's `kernel_folder`: machine code, launchers, graphs,
the best configurations. It is sealed, see `kernel_seal`. Nothing here stops an engine: what goes wrong costs a line of the log
and the time to compile.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

from ..profiles.errors import ToprovarError
from ..profiles.strict import write_atomic
from .kernel_folder import PARTS, PATH_BYTES, kernel_folder
from .kernel_seal import SealError, opened, sealed
from .machine import Machine

log = logging.getLogger(__name__)

KERNELS = "kernels"
"""Folder in the bundle; not in the manifest, as it changes where the bundle runs."""
ANYWHERE = b"/toprovar-kernels".ljust(PATH_BYTES, b"-")
"""In an archive, in place of the folder's path and as long."""
UNFINISHED = re.compile(r"(^|/)(\.|tmp\.|locks?(/|$))|\.(tmp|lock)$")
"""Files that somebody still writes, and locks."""

Files = frozenset[tuple[str, int]]
"""Names relative to the folder, with their bytes."""


class KernelArchive:
    """The kernels of one bundle on one kind of machine. Engines of one process share their folder, and what is in it.

    Args:
        bundle: The bundle's folder.
        machine: What is here; the archive is of its GPU's name and its versions.
    """

    def __init__(self, bundle: Path, machine: Machine) -> None:
        self.path = bundle / KERNELS / f"{kind_of(machine)}.zip"
        self._kept: Files = frozenset()

    def restore(self) -> None:
        """Let all that is compiled from now on be looked up in the archive first, and collected for it."""
        try:
            folder = kernel_folder()
            if folder is not None and self.path.is_file():
                self._kept = unpack(opened(self.path.read_bytes(), self.path), folder)
        except (ToprovarError, OSError, zipfile.BadZipFile) as problem:
            log.warning("kernels are compiled anew: %s", problem)

    def keep(self) -> None:
        """Write the archive anew if the folder holds what it lacks."""
        try:
            folder = kernel_folder()
            found = files_of(folder) if folder is not None else frozenset()
            if folder is None or found <= self._kept:
                return
            # where it fails, the next graph tries again only if it compiled something
            self._kept = found
            # without parents: a bundle that was removed must not come back as a folder of kernels alone
            self.path.parent.mkdir(exist_ok=True)
            write_atomic(self.path, sealed(pack(found, folder)))
        except (ToprovarError, OSError) as problem:
            log.warning("%s: kernels cannot be kept, every load compiles them: %s", self.path, problem)


def kind_of(machine: Machine) -> str:
    """GPU and versions that compiled kernels fit, as the name of a file."""
    import torch

    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "none"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    versions = f"torch {torch.__version__} triton {triton} cuda {machine.cuda} python {python} {platform.machine()}"
    return re.sub(r"[^a-z0-9.]+", "-", f"{machine.gpu} {versions}".lower()).strip("-.")


def files_of(folder: Path) -> Files:
    """All files of the folder that are finished."""
    found = set()
    # a folder that is gone by now is passed over
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if not UNFINISHED.search(relative) and path.is_file():
                found.add((relative, path.stat().st_size))
    return frozenset(found)


def pack(files: Files, folder: Path) -> bytes:
    """A zip of some files of the folder, without the folder's path."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, _ in sorted(files):
            content = (folder / name).read_bytes().replace(os.fsencode(folder), ANYWHERE)
            # a fixed date: the same kernels are the same bytes
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, compresslevel=1)
    return buffer.getvalue()


def unpack(data: bytes, folder: Path) -> Files:
    """Put a zip's files into the folder, and the folder's path into them; files that are there stay.

    Returns:
        All files of the zip.

    Raises:
        SealError: A name leads out of the folder; nothing is written.
        OSError: The folder cannot be written.
        zipfile.BadZipFile: It is no zip.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if strays := [entry.filename for entry in entries if not _inside(entry.filename)]:
            raise SealError(f"an archive of kernels names files outside, as {strays[0]!r}; remove it")
        for entry in entries:
            target = folder / entry.filename
            if not target.exists():
                write_atomic(target, archive.read(entry).replace(ANYWHERE, os.fsencode(folder)))
    return frozenset((entry.filename, entry.file_size) for entry in entries)


def _inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[:1] in {(part,) for part in PARTS.values()} and ".." not in parts
