"""What goes in and out of each graph of two images drawn in torch, and how far ONNX Runtime is from that on the same inputs.

A graph gets torch's own inputs, so that what it is blamed for is its own. The prompts have different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small_model import PROMPTS
from toprovar.compile.graphs import ClampedDecoder
from toprovar.models.family import build_steps
from toprovar.models.generate import condition_rows, image_noise, run_scales
from toprovar.models.load import LoadedModel
from toprovar.profiles.manifest import Graph
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.engine import Engine

SEEDS = (3, 4)
TOLERANCE = {
    "fp32": {"text": 1.1e-6, "sos": 7e-7, "k": 1.7e-6, "entropy": 8e-7, "delta": 8e-6, "branch": 1.5e-6, "image": 3.4e-5},
    "fp16": {"text": 2.4e-3, "sos": 1.4e-3, "k": 3.4e-3, "entropy": 3.2e-4, "delta": 5.2e-2, "branch": 4.8e-3, "image": 2e-2},
}
"""Greatest difference over the tensor's largest magnitude, of two prompts and eight pairs of seeds on a CPU, doubled.

An update (`delta`) is small beside the stream that it is the difference of.
"""
FLIPPED = {"fp32": 0.0, "fp16": 0.009}
"""Share of the sum's entries that a flipped bit may change, where its probability meets the noise; as measured, doubled."""
Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]


def drawn(
    model: LoadedModel, schedule: Schedule, seeds: Sequence[int] = SEEDS, prompts: Sequence[str] = PROMPTS[1:3]
) -> dict[str, tuple[Arrays, Arrays]]:
    """Inputs and outputs of `words`, `condition`, `scale 0` ..., `decoder`; a scale's inputs are the whole state."""
    found: dict[str, tuple[Arrays, Arrays]] = {}
    steps = build_steps(model, schedule)
    for step in steps:
        step.register_forward_hook(
            lambda step, given, out: found.update({f"scale {step.plan.scale}": (_arrays(given[0]), _arrays(out))})
        )
    encoder, tokenizer = model.text.encoder, model.text.tokenizer  # type: ignore[attr-defined]
    encoded = tokenizer.encode(list(prompts))
    with torch.inference_mode():
        text = encoder(torch.from_numpy(encoded.ids))
        rows = condition_rows(model.transformer, text, torch.from_numpy(encoded.lengths), schedule.guided)
        state = model.transformer.initial_state(*rows)
        summed = run_scales(steps, state, image_noise(model.profile, seeds))["summed"]
        image = ClampedDecoder(model.decoder)(summed)
    found["words"] = ({"ids": encoded.ids}, _arrays({"text": text}))
    found["condition"] = (_arrays({"text": rows[0], "lengths": rows[1]}), _arrays(state))
    found["decoder"] = (_arrays({"summed": summed}), _arrays({"image": image}))
    return found


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def compare(found: Arrays, expected: Arrays, precision: str, chosen_anew: float = 0.0, graph: str = "") -> None:
    """Hold what a graph computed to torch's outputs.

    Args:
        found: Of ONNX Runtime.
        expected: Of torch.
        precision: Of the graph, fp32 or fp16.
        chosen_anew: Share of keys and values that may differ, where tokens are chosen by what the graph itself rounds.
        graph: Named where they differ.
    """
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        ours, share = found[name], 0.0
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        finite = np.isfinite(theirs)
        assert np.array_equal(ours[~finite], theirs[~finite]), name
        difference = np.abs(ours[finite].astype(np.float64) - theirs[finite])
        limit = _tolerance(name, precision) * np.abs(theirs[finite]).max()
        if name == "summed":
            share = _flipped(precision, graph, theirs)
        elif name.partition(".")[0] in ("k", "v"):
            share = chosen_anew
        beyond = float(np.mean(difference > limit))
        assert beyond <= share, f"{graph} {name}: {beyond:.2%} differ by more than {limit:.2g}, at most {difference.max():.2g}"


def _flipped(precision: str, graph: str, summed: NDArray[Any]) -> float:
    """One bit of the first scale fills a channel of an image; which bits meet the noise depends on how a CPU rounds."""
    if precision == "fp16" and graph == "scale 0":
        return 1 / (summed.shape[0] * summed.shape[1])
    return FLIPPED[precision]


def _tolerance(name: str, precision: str) -> float:
    kind = name.partition(".")[0]
    known = {"summed": "k", "v": "k"} | {f"delta_{branch}": "branch" for branch in ("attention", "cross", "mlp")}
    return TOLERANCE[precision].get(known.get(kind, kind), TOLERANCE[precision]["sos"])


def engine_runs(folder: Path) -> dict[str, Run]:
    """The graphs of a bundle by the names of `drawn`; each takes the whole state."""
    engine = Engine(folder, threads=1)
    manifest = engine.manifest
    assert manifest.words is not None, "the small model's text encoder is in its bundle"
    graphs = {"words": manifest.words, "condition": manifest.condition, "decoder": manifest.decoder}
    graphs |= {f"scale {scale.scale}": scale.graph for scale in manifest.scales}

    def run(graph: Graph, given: Arrays) -> Arrays:
        found = engine.run_graph(graph, {name: given[name] for name in graph.inputs})
        return {name: value.numpy() for name, value in found.items()}

    return {name: partial(run, graph) for name, graph in graphs.items()}
