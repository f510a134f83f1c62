"""Build frozen dataclasses from YAML mappings and refuse every key they do not have.

A dropped key is a setting the user believes in and the program ignores; so unknown and missing keys are errors that
name the place, the keys, and what is allowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .errors import ToprovarError

T = TypeVar("T")


def build(cls: type[T], data: object, where: str, error: type[ToprovarError]) -> T:
    """Make `cls(**data)` after checking the keys.

    Raises:
        ToprovarError: (of class `error`) `data` is no mapping, or has unknown or missing keys.
    """
    if not isinstance(data, Mapping):
        raise error(f"{where}: expected a mapping, got {type(data).__name__} {data!r:.80}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in set(data) - set(fields))
    if unknown:
        raise error(f"{where}: unknown keys {unknown}; the keys are {sorted(fields)}")
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise error(f"{where}: missing keys {missing}")
    try:
        return cls(**data)
    except error as problem:
        raise error(f"{where}: {problem}") from problem
    except TypeError as problem:
        raise error(f"{where}: a value has the wrong type ({problem})") from problem


def read_yaml(path: Path, error: type[ToprovarError]) -> dict[str, Any]:
    """Read one YAML mapping with `safe_load`; `format` must be 1 and is taken out."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise error(f"{path}: no such file") from problem
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read as text ({problem})") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise error(f"{path}: not valid YAML{line}: {getattr(problem, 'problem', problem)}") from problem
    if not isinstance(data, dict):
        raise error(f"{path}: expected a YAML mapping, got {type(data).__name__}")
    version = data.pop("format", None)
    if version != 1:
        raise error(f"{path}: format is {version!r}, this version reads format 1")
    return data


def write_atomic(path: Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, then rename: a reader never sees half a file, a failure leaves none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # a link that stands there would be written through
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
