"""Bundles with rungs: images share the first scales, then the batch is split by what each image picks.

The features are computed on the host from small tensors. `walk_rungs` is for engines whose host sees the state between two
scales; the parts that it is made of serve plans too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..profiles.decision import observe
from ..profiles.manifest import EngineManifest, RungGraphs
from ..profiles.plan import NUMBERS, ROWLESS
from ..profiles.schedule import Schedule
from .loop import PER_SCALE, FloatArray, Runner, walk_scales

Value = TypeVar("Value")
VIEWS = ("view before", "view after")
"""Images that a decision looks at: of the state before its scale and after it."""


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
    after = walk_to_decision(manifest, schedule, batch, inputs, runner)
    picked, guided = pick_rungs(schedule, lambda name: runner.array(after[name])), manifest.scales[-1].guidance
    if len(set(picked)) > 1:
        after = {name: runner.array(value) for name, value in after.items() if name not in VIEWS}
    summed = runner.array(after["summed"]).copy()
    for rung in manifest.rungs:
        images = images_of(rung, picked)
        if not images:
            continue
        part, own = after, inputs
        if len(images) < batch:
            part, own = take_images(after, images, batch, guided), inputs_of(inputs, images)
        end = walk_scales(rung.scales, part, guided, len(images), own, runner, label=f"{rung.name}: ")
        summed[images] = runner.array(end["summed"])
    return runner.array(runner.run("decoder", manifest.decoder, {"summed": summed})["image"]), picked


def walk_to_decision(
    manifest: EngineManifest, schedule: Schedule, batch: int, inputs: Mapping[str, Value], runner: Runner[Value]
) -> dict[str, Value]:
    """The state after the decision's scale; where the decision looks at images, they stand beside it under VIEWS."""
    begun = runner.run("condition", manifest.condition, {"text": inputs["text"], "lengths": inputs["lengths"]})
    before = walk_scales(manifest.scales[:-1], begun, schedule.guided, batch, inputs, runner)
    after = walk_scales(manifest.scales[-1:], before, manifest.scales[-2].guidance, batch, inputs, runner)
    if manifest.view is None:
        return after
    views = {}
    for name, state in zip(VIEWS, (before, after), strict=True):
        views[name] = runner.run(name, manifest.view, {"summed": state["summed"]})["image"]
    return {**after, **views}


def pick_rungs(schedule: Schedule, array: Callable[[str], NDArray[Any]]) -> tuple[str, ...]:
    """The rung of each image, from arrays of what `walk_to_decision` left, by name."""
    decision = schedule.decision
    assert decision is not None, "only a schedule with rungs has something to pick"
    return decision.pick(observe(decision, lambda: array("entropy"), lambda: tuple(array(name) for name in VIEWS)))


def images_of(rung: RungGraphs, picked: Sequence[str]) -> list[int]:
    """The images that picked a rung."""
    return [index for index, name in enumerate(picked) if name == rung.name]


def inputs_of(inputs: Mapping[str, NDArray[Any]], images: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What the scales of some of the images have of their own: `noise.S` of these, `cfg.S` as it is."""
    scales = {name: value for name, value in inputs.items() if name.partition(".")[0] in PER_SCALE}
    return {name: value if name.partition(".")[0] in NUMBERS else value[list(images)] for name, value in scales.items()}


def take_images(state: Mapping[str, NDArray[Any]], images: Sequence[int], batch: int, guided: bool) -> dict[str, NDArray[Any]]:
    """The state of some of the images: their conditional rows and, with guidance, their unconditional ones."""
    return {
        name: value if name in NUMBERS else np.ascontiguousarray(value[rows_of(name, images, batch, guided)])
        for name, value in state.items()
    }


def rows_of(name: str, images: Sequence[int], batch: int, guided: bool) -> list[int]:
    """Where some of the images stand in a tensor of the state: with guidance a tensor with rows has two an image."""
    return [*images, *(batch + index for index in images)] if guided and name not in ROWLESS else list(images)
