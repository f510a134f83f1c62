"""Graphs that several bundles of one process share: exporting takes most of a build, and policies differ in a few scales."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

from ..models.load import LoadedModel
from .weight_store import CONSTANTS, Exported, WeightStore

Kept = tuple[Exported, dict[str, Tensor]]
"""A graph, and the constants that it points to; weights are in every store, and one model's copy is not kept for another's."""
Graphs = dict[Hashable, Any]
"""`Kept` for graphs, what was made for the rest."""
T = TypeVar("T")
_kept: ContextVar[Graphs | None] = ContextVar("kept", default=None)


@contextmanager
def reusing_graphs(kept: Graphs | None = None) -> Iterator[None]:
    """Within it, and within others inside it, a graph of the same weights and profile is exported once.

    Args:
        kept: Where graphs are; None is memory, or what a `reusing_graphs` around this one has.
    """
    if kept is None:
        kept = _kept.get()
    token = _kept.set({} if kept is None else kept)
    try:
        yield
    finally:
        _kept.reset(token)


def kept_once(key: Hashable, make: Callable[[], T]) -> T:
    """What `key` names, from what is kept where something is; within `reusing_graphs` alone it is kept."""
    kept = _kept.get()
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    found: T = kept[key]
    return found


def exported_once(model: LoadedModel, what: Hashable, store: WeightStore, export: Callable[[], Exported]) -> Exported:
    """A graph of a model, from those kept where it is among them.

    Args:
        model: All weights: small ones stand in the graph itself.
        what: Names the graph and all that it computes, such as a scale's plan.
        store: Of the bundle, with the model's weights; the graph's constants are in it afterwards.
        export: Makes the graph and puts its constants into the store.
    """

    def made() -> Kept:
        graph = export()
        constants = [name for name in graph.weights.values() if name.startswith(CONSTANTS)]
        return graph, {name: store.tensors[name] for name in constants}

    key = (model.profile.graph_digest(), model.weights_digest(), str(model.weight.dtype), what)
    graph, tensors = kept_once(key, made)
    for name, tensor in tensors.items():
        store.tensors.setdefault(name, tensor)
    # placing weights changes the graph
    return copy.deepcopy(graph)
