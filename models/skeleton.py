"""Modules without values: names, shapes and dtypes alone, for weights that are loaded afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLS = frozenset(("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"))
"""Functions of `torch.nn.init` and methods of tensors by name; each returns the tensor it fills."""


@contextmanager
def skeleton() -> Iterator[None]:
    """Build modules on the meta device.

    Filling a tensor there writes nothing, yet imports torch's compiler: nine hundred modules, seconds of a load. So nothing
    fills one here.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
