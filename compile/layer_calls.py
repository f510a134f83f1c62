"""Layers as calls: while a scale is traced, its blocks are not; each call of a block is one node that says what it would run.

Blocks of a model differ in their weights only, and tracing one takes seconds. What calls compute is exported apart, once for
all that are alike, and then stands in the graph in their places (`layer_bodies`): the finished graph has no calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..models.step import ScaleStep

DOMAIN = "toprovar.layer"
LAYER = "layer"
"""Attribute of a call: which block."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tensor: sizes that vary have a name, `d0` for the first that a call meets."""

    dtype: torch.dtype
    sizes: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes calls alike: the same method of blocks of the same shape, given the same but for numbers in tensors."""

    model: str
    method: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    arguments: pytree.TreeSpec
    leaves: tuple[Any, ...]
    """Of the arguments: a tensor's `Shape`; all else as it is."""


class LayerCalls:
    """The calls of a scale's blocks.

    Attributes:
        blocks: Of the model.
        kinds: Name of each kind, unique in the scale, and the layer that met it first.
    """

    def __init__(self, step: ScaleStep) -> None:
        self.blocks: tuple[nn.Module, ...] = tuple(step.blocks())
        self.kinds: dict[Kind, tuple[str, int]] = {}
        self._config = step.profile.transformer
        self._methods = ("forward", *(f"{branch}_branch" for branch in step.BRANCHES))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it, a call of a block or of one of its branches is one node of the domain `DOMAIN`."""
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                for method in self._methods:
                    stack.enter_context(patch.object(block, method, self._call(layer, method)))
            yield

    def _call(self, layer: int, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            leaves, spec = pytree.tree_flatten(arguments)
            results = self._results(method, arguments)
            found = torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{self._name(layer, method, leaves, spec)}",
                [leaf for leaf in leaves if isinstance(leaf, Tensor)],
                {LAYER: layer},
                dtypes=[dtype for dtype, _ in results],
                shapes=[shape for _, shape in results],
                version=1,
            )
            return (*found, *[None] * (4 - len(found))) if _attends(method) else found[0]

        return call

    def _name(self, layer: int, method: str, leaves: Sequence[Any], spec: pytree.TreeSpec) -> str:
        symbols: dict[Any, str] = {}

        def size(value: int | torch.SymInt) -> int | str:
            # by the size of the example: until they meet, rows are one symbol in x and another in what is modulated
            return value if isinstance(value, int) else symbols.setdefault(value.node.hint, f"d{len(symbols)}")

        block = self.blocks[layer]
        kind = Kind(
            model=repr(self._config),
            method=method,
            weights=tuple((name, tuple(value.shape)) for name, value in block.state_dict(keep_vars=True).items()),
            arguments=spec,
            leaves=tuple(
                Shape(leaf.dtype, tuple(map(size, leaf.shape))) if isinstance(leaf, Tensor) else leaf for leaf in leaves
            ),
        )
        return self.kinds.setdefault(kind, (f"{method}_{len(self.kinds)}", layer))[0]

    def _results(self, method: str, arguments: tuple[Any, ...]) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of what a method returns: of `Attended`, without an entropy that is not read, or of one tensor."""
        x: Tensor = arguments[0]
        rows, count, _ = x.shape
        found = [(x.dtype, tuple(x.shape))]
        if _attends(method):
            *_, past, reads_entropy = arguments
            keys = count if past is None else past[0].shape[2] + count
            found += [(x.dtype, (rows, self._config.heads, keys, self._config.head_width))] * 2
            found += [(torch.float32, (rows, self._config.heads, count))] * reads_entropy
        return found


def _attends(method: str) -> bool:
    return method in ("forward", "attention_branch")
