"""The seal on compiled kernels: they are code and pickles, so only what this user's own key has sealed is opened.

A bundle may come from anyone. The seal is HMAC-SHA256 with a random key that stays on the user's machine; it stands before the
data in the same file, so the two cannot be out of step.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from ..profiles.errors import ToprovarError

VARIABLE = "TOPROVAR_KERNELS_KEY"
KEY_BYTES = 32
SEAL_BYTES = 32


class SealError(ToprovarError):
    """Nothing can be opened or sealed: another seal, or no key."""


def sealed(data: bytes) -> bytes:
    """`data` behind its seal.

    Raises:
        SealError: There is no key that can be used.
        OSError: The key cannot be read or made.
    """
    return hmac.digest(_key(), data, "sha256") + data


def opened(content: bytes, where: Path) -> bytes:
    """What stands behind the seal.

    Args:
        content: Of the file.
        where: The file, for the message.

    Raises:
        SealError: Another key has sealed it, it has changed since, or there is no key that can be used.
        OSError: The key cannot be read or made.
    """
    data = content[SEAL_BYTES:]
    if not hmac.compare_digest(content[:SEAL_BYTES], hmac.digest(_key(), data, "sha256")):
        remedy = f"if it is from another machine of yours, name that machine's key file in {VARIABLE}"
        raise SealError(f"{where}: not sealed with your key {key_file()}, or damaged, so it is not opened; {remedy}")
    return data


def key_file() -> Path:
    """`TOPROVAR_KERNELS_KEY`, or `toprovar/kernels.key` in the user's folder of settings.

    Raises:
        SealError: The user has no home.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    settings = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        # a relative one is to be ignored, says the standard
        folder = settings if settings.is_absolute() else Path.home() / ".config"
    except RuntimeError as problem:
        raise SealError(f"no home folder for the key of kernels ({problem}); name a file in {VARIABLE}") from problem
    return folder / "toprovar" / "kernels.key"


def _key() -> bytes:
    """The key, made at first need."""
    path = key_file()
    if not path.exists():
        _make(path)
    with path.open("rb") as file:
        status, key = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
    # who reads or writes the key can seal code that runs here
    if status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise SealError(f"{path}: others may use this key of kernels; own it and run `chmod 600 {path}`, or remove it")
    if len(key) != KEY_BYTES:
        raise SealError(f"{path}: is no key of kernels, expected {KEY_BYTES} bytes; remove it, a new one is made")
    return key


def _make(path: Path) -> None:
    """Write a random key under another name, then link it: nobody sees half a key, and an existing one stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        # another process may have been first
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
