"""Time single graphs of a bundle on ONNX Runtime, without building the bundle: export, load, run in turn, take medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..compile.graphs import export_conditioning, export_decoder, export_scale, export_view
from ..compile.weight_store import Exported, WeightStore, place
from ..models.family import family_of, stored_modules
from ..models.load import LoadedModel
from ..models.rungs import View
from ..profiles.costs import DecisionTime
from ..profiles.decision import observe
from ..profiles.geometry import tokens_through
from ..profiles.manifest import WEIGHTS
from ..profiles.plan import ScalePlan
from ..profiles.schedule import Schedule
from ..runtime.engine import input_types, open_session, session_options

LOW, HIGH = 0.5, 1.5
"""Range of made-up state: no zeros, no denormal numbers."""
Times = dict[tuple[str, int], float]
"""Median milliseconds by graph and batch."""


class GraphTimes:
    """Exports and times graphs of one model.

    Args:
        model: On the CPU, fp32.
        folder: For graphs and weights; empty.
        threads: Of ONNX Runtime; None takes all cores this process may use.
        text_tokens: Length of the text.
        rounds: Timed runs of each graph, after one that is not timed.
    """

    def __init__(self, model: LoadedModel, folder: Path, threads: int | None, text_tokens: int, rounds: int) -> None:
        self.model, self.folder, self.text_tokens, self.rounds = model, folder, text_tokens, rounds
        self.options = session_options(threads)
        self.store = WeightStore()
        for prefix, module in stored_modules(model).items():
            self.store.register(prefix, module)
        self._spreads: list[float] = []

    @property
    def spread(self) -> float:
        """Median over all graphs of the range of the middle half of their times, over their median time."""
        return statistics.median(self._spreads)

    def scale(self, plans: Mapping[str, ScalePlan], runs: Iterable[tuple[str, int]]) -> Times:
        """Time one scale under several plans.

        Args:
            plans: By name.
            runs: (name, batch) pairs; all of them take turns.
        """
        family = family_of(self.model.profile)
        steps = {name: family.step(self.model, plan) for name, plan in plans.items()}
        return self._time({name: export_scale(step, self.store) for name, step in steps.items()}, runs)

    def fixed(self, batch: int, rows: int) -> Times:
        """Time `condition` (of `batch * rows` rows) and `decoder` (of `batch` images)."""
        profile = self.model.profile
        graphs = {
            "condition": export_conditioning(self.model.transformer, self.store),
            "decoder": export_decoder(
                self.model.decoder, (profile.transformer.latent_channels, *profile.latent_size), self.store
            ),
        }
        return self._time(graphs, (("condition", batch * rows), ("decoder", batch)))

    def decision(self, schedule: Schedule, batch: int) -> DecisionTime:
        """Time what a schedule with rungs looks at, and the numbers that it reads off it."""
        decision, transformer = schedule.decision, self.model.profile.transformer
        assert decision is not None, "only a schedule with rungs decides"
        ms, size = 0.0, self.model.profile.sizes[decision.scale]
        if decision.view is not None:
            view = View(self.model.decoder, self.model.profile, decision)
            graph = export_view(view, (transformer.latent_channels, *self.model.profile.latent_size), self.store)
            ms, size = 2 * self._time({"view": graph}, [("view", batch)])["view", batch], view.size
        seen = np.random.default_rng(0).uniform(LOW, HIGH, (batch, 1 if decision.view is None else 3, *size))
        spent = []
        for _ in range(1 + self.rounds):
            start = time.perf_counter()
            decision.pick(observe(decision, lambda: seen, lambda: (seen, seen)))
            spent.append((time.perf_counter() - start) * 1000)
        ms += statistics.median(spent[1:])
        return DecisionTime(features=decision.features, tokens=tokens_through(self.model.profile.sizes, decision.scale), ms=ms)

    def _time(self, graphs: Mapping[str, Exported], runs: Iterable[tuple[str, int]]) -> Times:
        layout = self.store.save(self.folder / WEIGHTS)
        sessions = {}
        for name, graph in graphs.items():
            path = self.folder / "graph.onnx"
            place(graph.proto, graph.weights, layout)
            path.write_bytes(graph.proto.SerializeToString())
            sessions[name] = open_session(path, self.options)
        jobs = [(key, sessions[key[0]], _feeds(sessions[key[0]], key[1], self.text_tokens)) for key in runs]
        found: dict[tuple[str, int], list[float]] = {key: [] for key, _, _ in jobs}
        for turn in range(1 + self.rounds):
            for key, session, feeds in jobs:
                start = time.perf_counter()
                session.run_with_ort_values([output.name for output in session.get_outputs()], feeds)
                if turn:
                    found[key].append((time.perf_counter() - start) * 1000)
        self._spreads += [
            float(np.subtract(*np.percentile(values, (75, 25)))) / statistics.median(values) for values in found.values()
        ]
        return {key: statistics.median(values) for key, values in found.items()}


def _feeds(session: Any, batch: int, text_tokens: int) -> dict[str, Any]:
    """Made-up tensors of the right shapes for every input of a graph."""
    import onnxruntime as ort

    generator, types = np.random.default_rng(0), input_types(session)
    sizes = {"batch": batch, "2*batch": 2 * batch, "text": text_tokens}
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else sizes[size] for size in value.shape]
        made = generator.uniform(LOW, HIGH, shape)
        if np.issubdtype(types[value.name], np.integer):
            # lengths: every text is as long as it can be
            made = np.full(shape, text_tokens)
        feeds[value.name] = ort.OrtValue.ortvalue_from_numpy(made.astype(types[value.name]))
    return feeds
