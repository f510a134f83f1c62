"""Layers as calls: while a scale is traced, its blocks are not; each call of a block is one node that says what it would run.

Blocks of a model differ in their weights only, and scales in the number of tokens; tracing a block takes seconds. What calls
compute is exported apart, once for all that are alike, and then stands in the graph in their places (`layer_bodies`): the
finished graph has no calls.
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

from ..models.state import Rope
from ..models.step import ScaleStep

DOMAIN = "toprovar.layer"
LAYER = "layer"
"""Attribute of a call: which block."""
TOKENS, PAST = "tokens", "past"
"""Names of the sizes that a graph fixes, and other scales' graphs otherwise."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a tensor: sizes that vary have a name; those that vary within a graph, `d0` for the first that a call meets."""

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


@dataclass(frozen=True, slots=True)
class Call:
    """A kind at the sizes of a graph."""

    kind: Kind
    sizes: tuple[tuple[str, int], ...]


class LayerCalls:
    """The calls of a scale's blocks.

    Attributes:
        blocks: Of the model.
        found: Name of each different call, unique in the scale, and the layer that met it first.
    """

    def __init__(self, step: ScaleStep) -> None:
        self.blocks: tuple[nn.Module, ...] = tuple(step.blocks())
        self.found: dict[Call, tuple[str, int]] = {}
        self._step, self._config = step, step.profile.transformer
        self._rope: Rope | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it, a call of a block or of one of its branches is one node of the domain `DOMAIN`."""
        step = self._step
        methods = ("forward", *(f"{branch}_branch" for branch in step.BRANCHES))
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                for method in methods:
                    stack.enter_context(patch.object(block, method, self._call(layer, method)))
            for name in ("run_block", "run_attention"):
                stack.enter_context(patch.object(step, name, self._with_rope(getattr(step, name))))
            yield

    def _with_rope(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Note which tensors of a call are the rotary table: its tokens vary."""

        def noted(layer: int, block: nn.Module, x: Tensor, rope: Rope | None, *others: Any) -> Any:
            self._rope = rope
            return run(layer, block, x, rope, *others)

        return noted

    def _call(self, layer: int, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            leaves, spec = pytree.tree_flatten(arguments)
            past = arguments[-2] if _attends(method) else None
            results = self._results(method, arguments, past)
            found = torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{self._name(layer, method, leaves, spec, past)}",
                [leaf for leaf in leaves if isinstance(leaf, Tensor)],
                {LAYER: layer},
                dtypes=[dtype for dtype, _ in results],
                shapes=[shape for _, shape in results],
                version=1,
            )
            return (*found, *[None] * (4 - len(found))) if _attends(method) else found[0]

        return call

    def _name(self, layer: int, method: str, leaves: Sequence[Any], spec: pytree.TreeSpec, past: Any) -> str:
        """The name of a call, a new one for one that is like none so far."""
        x: Tensor = leaves[0]
        fixed = {TOKENS: x.shape[1], PAST: 0 if past is None else past[0].shape[2]}
        roles = {id(x): (1, TOKENS)} | {id(table): (-2, TOKENS) for table in self._rope or ()}
        roles |= {id(cached): (2, PAST) for cached in past or ()}
        symbols: dict[Any, str] = {}

        def shape(leaf: Tensor) -> Shape:
            # by the size of the example: until they meet, rows are one symbol in x and another in what modulates it
            sizes: list[int | str] = [
                size if isinstance(size, int) else symbols.setdefault(size.node.hint, f"d{len(symbols)}") for size in leaf.shape
            ]
            if id(leaf) in roles:
                axis, name = roles[id(leaf)]
                sizes[axis] = name
            return Shape(leaf.dtype, tuple(sizes))

        kind = Kind(
            model=repr(self._config),
            method=method,
            weights=tuple((name, tuple(value.shape)) for name, value in self.blocks[layer].state_dict(keep_vars=True).items()),
            arguments=spec,
            leaves=tuple(shape(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        )
        call = Call(kind, tuple(fixed.items()))
        return self.found.setdefault(call, (f"{method}_{len(self.found)}", layer))[0]

    def _results(self, method: str, arguments: tuple[Any, ...], past: Any) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of what a method returns: of `Attended`, without an entropy that is not read, or of one tensor."""
        x: Tensor = arguments[0]
        rows, count, _ = x.shape
        found = [(x.dtype, tuple(x.shape))]
        if _attends(method):
            keys = count if past is None else past[0].shape[2] + count
            found += [(x.dtype, (rows, self._config.heads, keys, self._config.head_width))] * 2
            found += [(torch.float32, (rows, self._config.heads, count))] * arguments[-1]
        return found


def _attends(method: str) -> bool:
    """Whether a method returns `Attended`; its last arguments are then the past, and whether the entropy is read."""
    return method in ("forward", "attention_branch")
