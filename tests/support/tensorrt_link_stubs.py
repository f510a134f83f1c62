"""NVIDIA's own `tensorrt.plugin` code without TensorRT: its Python bindings, linked to libraries that do nothing.

The bindings are a wheel of 5 MB; the library they call is not needed to register a plugin and to ask it for its shapes,
its launch and its kernel. Three empty libraries satisfy the linker. Five things that the library would give are plain
Python here: dimension expressions, lists of them, symbolic kernel arguments, the builder of expressions, the registry.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getPluginRegistry", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "MIN": min,
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
    "EQUAL": lambda a, b: int(a == b),
    "LESS": lambda a, b: int(a < b),
}


@dataclass(frozen=True, eq=False)
class Dim:
    """`IDimensionExpr`: a constant, a named size, or an operation on two of them."""

    value: int | None = None
    name: str = ""
    operation: str = ""
    operands: tuple[Dim, ...] = ()

    def is_constant(self) -> bool:
        return self.value is not None

    def get_constant_value(self) -> int:
        assert self.value is not None, "the library would return a number without meaning"
        return self.value

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """The number this stands for, given the named sizes."""
        if self.value is not None:
            return self.value
        if self.name:
            return sizes[self.name]
        return OPERATIONS[self.operation](*(operand.evaluate(sizes) for operand in self.operands))


class ExprBuilder:
    """`IExprBuilder`; folds constants, as the library does."""

    def constant(self, value: int) -> Dim:
        return Dim(value=value)

    def operation(self, op: Any, first: Dim, second: Dim) -> Dim:
        found = Dim(operation=op.name, operands=(first, second))
        return Dim(value=found.evaluate({})) if first.is_constant() and second.is_constant() else found


class DimsExprs(list[Any]):
    """`DimsExprs`: a list of known length."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class SymExpr:
    """`ISymExpr`: NVIDIA's subclass sets `type`, `dtype` and `expr`."""


class Registry:
    """`IPluginRegistry`, as far as creators go."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


@contextmanager
def stubbed_tensorrt(folder: Path | None = None) -> Iterator[Any]:
    """`import tensorrt` and `import tensorrt.plugin` work inside; nothing of them is left in `sys.modules` outside.

    The modules themselves live as long as the process, because a plugin can be registered in them only once.

    Args:
        folder: Where the libraries are built, the first time; None is a temporary folder. They may be deleted afterwards.
    """
    modules = _loaded(folder)
    before = {name: module for name, module in sys.modules.items() if _belongs(name)}
    sys.modules.update(modules)
    try:
        yield modules["tensorrt"]
    finally:
        for name in [name for name in sys.modules if _belongs(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _belongs(name: str) -> bool:
    return name == "tensorrt" or name.startswith("tensorrt.")


_modules: dict[str, ModuleType] = {}


def _loaded(folder: Path | None) -> dict[str, ModuleType]:
    if not _modules:
        reason = missing()
        if reason:
            pytest.skip(reason)
        with tempfile.TemporaryDirectory() as temporary:
            build_stubs(folder or Path(temporary))
        bindings = importlib.import_module("tensorrt_bindings")
        stand_ins = {"IDimensionExpr": Dim, "DimsExprs": DimsExprs, "ISymExpr": SymExpr}
        registry = Registry()
        for name, replacement in {**stand_ins, "get_plugin_registry": lambda: registry}.items():
            setattr(bindings, name, replacement)
        sys.modules["tensorrt"] = bindings
        try:
            importlib.import_module("tensorrt.plugin")
            _modules.update({name: module for name, module in sys.modules.items() if _belongs(name)})
        finally:
            for name in [name for name in sys.modules if _belongs(name)]:
                del sys.modules[name]
    return _modules


@cache
def missing() -> str:
    """Why the stubs cannot be used here, or nothing."""
    if importlib.util.find_spec("tensorrt_libs") or importlib.util.find_spec("tensorrt"):
        return "TensorRT itself is installed; stubs would hide it"
    if not importlib.util.find_spec("tensorrt_bindings"):
        return "tensorrt_bindings is not installed (pip install --no-deps tensorrt-cu13-bindings)"
    if not shutil.which("gcc"):
        return "gcc is not installed"
    return ""


def build_stubs(folder: Path) -> None:
    """Compile the libraries that the bindings ask the linker for, and load them, so that their names are taken."""
    found = importlib.util.find_spec("tensorrt_bindings")
    assert found is not None
    assert found.origin is not None
    extension = Path(found.origin).with_name("tensorrt.so").read_bytes()
    names = sorted({name.decode() for name in re.findall(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+", extension)})
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for name in names:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
