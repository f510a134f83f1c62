"""Bundles with rungs: images share the first scales, then the batch is split by what each image picks.

The features are computed on the host from small tensors, so this is for engines whose host sees the state between two scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..profiles.decision import observe
from ..profiles.manifest import EngineManifest
from ..profiles.plan import NUMBERS, ROWLESS
from ..profiles.schedule import Schedule
from .loop import PER_SCALE, FloatArray, Runner, walk_scales


class HostRunner(Runner[Any], Protocol):
    """Runs one graph on tensors of its own kind, or on arrays."""

    def array(self, value: Any) -> NDArray[Any]:
        """A tensor of the state as an array."""
        ...


def walk_rungs(
    manifest: EngineManifest, schedule: Schedule, batch: int, inputs: Mapping[str, NDArray[Any]], runner: HostRunner
) -> tuple[FloatArray, tuple[str, ...]]:
    """Draw B images, each as the rung it picks.

    Args:
        manifest: Says which graphs run, and what goes in and out.
        schedule: With rungs.
        batch: Images B.
        inputs: As of `Engine.request`.
        runner: Runs the graphs.

    Returns:
        `[B, 3, h, w]`, and the name of each image's rung; both in the order of the inputs.
    """
    state = runner.run("condition", manifest.condition, {"text": inputs["text"], "lengths": inputs["lengths"]})
    before = walk_scales(manifest.scales[:-1], state, schedule.guided, batch, inputs, runner)
    guided = manifest.scales[-2].guidance
    after = walk_scales(manifest.scales[-1:], before, guided, batch, inputs, runner)
    picked, guided = _decide(manifest, schedule, before, after, runner), manifest.scales[-1].guidance
    if len(set(picked)) > 1:
        after = {name: runner.array(value) for name, value in after.items()}
    summed = runner.array(after["summed"]).copy()
    for rung in manifest.rungs:
        images = [index for index, name in enumerate(picked) if name == rung.name]
        if not images:
            continue
        part, own = after, inputs
        if len(images) < batch:
            part, own = take_images(after, images, batch, guided), _inputs_of(inputs, images)
        end = walk_scales(rung.scales, part, guided, len(images), own, runner, label=f"{rung.name}: ")
        summed[images] = runner.array(end["summed"])
    return runner.array(runner.run("decoder", manifest.decoder, {"summed": summed})["image"]), picked


def _inputs_of(inputs: Mapping[str, NDArray[Any]], images: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What the scales of some of the images have of their own: `noise.S` of these, `cfg.S` as it is."""
    scales = {name: value for name, value in inputs.items() if name.partition(".")[0] in PER_SCALE}
    return {name: value if name.partition(".")[0] in NUMBERS else value[list(images)] for name, value in scales.items()}


def _decide(
    manifest: EngineManifest, schedule: Schedule, before: Mapping[str, Any], after: Mapping[str, Any], runner: HostRunner
) -> tuple[str, ...]:
    """The rung of each image, from the state before and after the scale of the decision."""
    decision, view = schedule.decision, manifest.view
    assert decision is not None, "only a schedule with rungs is walked so"

    def views() -> tuple[NDArray[Any], ...]:
        assert view is not None, "a bundle whose decision looks at images holds the graph that decodes them"
        return tuple(runner.array(runner.run(f"view {n}", view, {"summed": s["summed"]})["image"]) for n, s in sides)

    sides = (("before", before), ("after", after))
    return decision.pick(observe(decision, lambda: runner.array(after["entropy"]), views))


def take_images(state: Mapping[str, NDArray[Any]], images: Sequence[int], batch: int, guided: bool) -> dict[str, NDArray[Any]]:
    """The state of some of the images: their conditional rows and, with guidance, their unconditional ones."""
    rows = [*images, *(batch + index for index in images)] if guided else list(images)
    return {
        name: value if name in NUMBERS else np.ascontiguousarray(value[list(images) if name in ROWLESS else rows])
        for name, value in state.items()
    }
