"""TensorRT's timing cache: what it measured once, it need not measure again.

TensorRT does not ask a plugin what its timings depend on, and a cache of another GPU is refused. So the file's name holds
all that makes timings stale: flavour, version, GPU, hash of our kernels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def timing_cache_path(asked: str, flavour: str, version: str, sm: int, kernel_hash: str) -> Path | None:
    """File of the cache; `asked` is a path, `none`, or empty for one in the user's cache folder."""
    if asked == "none":
        return None
    if asked:
        return Path(asked)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "toprovar" / f"timing_{flavour}_{version}_sm{sm}_{kernel_hash[:12] or 'none'}.cache"


@dataclass(frozen=True, slots=True)
class TimingCache:
    """One file, or none."""

    path: Path | None

    def load(self, config: Any) -> None:
        """Give a builder's configuration the cache, empty at first."""
        if self.path is not None:
            # a folder that cannot be written is told before the build, not after it
            self.path.parent.mkdir(parents=True, exist_ok=True)
            known = self.path.read_bytes() if self.path.exists() else b""
            # a damaged or foreign file costs time, never a build: TensorRT goes on without it
            config.set_timing_cache(config.create_timing_cache(known) or config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Write what was measured."""
        cache = config.get_timing_cache() if self.path is not None else None
        if self.path is not None and cache is not None:
            write_whole(self.path, bytes(cache.serialize()))


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the destination and rename, so that a half-written file never has its name."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
