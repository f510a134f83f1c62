"""The folder that this process compiles kernels into, private and gone at its end.

torch (inductor) and Triton are pointed to it by their own variables, which both read anew for every kernel and hand to the
processes that compile for them. Both write the folder's absolute path into what they keep. So its name always has the same
number of bytes: another folder's name can be put in its place inside any file, pickles and machine code too.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
PARTS = {INDUCTOR: "inductor", TRITON: "triton"}
"""Sub-folder of each variable."""
PREFIX = "toprovar-kernels-"
PATH_BYTES = 120
"""Of the folder's absolute path."""
LEAST_RANDOM = 16
"""Characters of its name that nobody can guess."""


@functools.cache
def kernel_folder() -> Path | None:
    """The process's folder, made at the first call, which sets both variables.

    Returns:
        None where the user has set one of them: then kernels go where the user wants them.

    Raises:
        OSError: The folder for temporary files cannot be written, or its path is too long.
    """
    if any(_chosen_by_user(variable) for variable in PARTS):
        return None
    folder = _made()
    for variable, part in PARTS.items():
        os.environ[variable] = str(folder / part)
    return folder


def _chosen_by_user(variable: str) -> bool:
    """Whether a variable is set, and by nobody else.

    Torch sets it to its own default when its compiler is imported or meets its first kernel. A process that has an engine sets
    it to its own folder for all that it begins, and takes that folder along when it ends.
    """
    value = os.environ.get(variable)
    if value is None or Path(value).parent.name.startswith(PREFIX):
        return False
    # torch's function for its default lies in a package that takes seconds to import
    own = re.escape(str(Path(tempfile.gettempdir(), "torchinductor_")))
    return re.fullmatch(f"{own}[^/]+(/triton/.*)?", value) is None


def _made() -> Path:
    parent = Path(tempfile.gettempdir()).resolve()
    room = PATH_BYTES - len(os.fsencode(parent / PREFIX))
    if room < LEAST_RANDOM:
        raise OSError(errno.ENAMETOOLONG, "the path of the folder for temporary files is too long, set TMPDIR", str(parent))
    folder = parent / f"{PREFIX}{secrets.token_hex(PATH_BYTES)[:room]}"
    folder.mkdir(mode=0o700)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    """A process that was forked off the owner leaves it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
