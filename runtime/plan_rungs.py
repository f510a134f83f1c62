"""Plans with rungs: one program up to the decision, one for those images of a batch that pick the same rung, one to decode.

The host reads the numbers of the decision between them and nothing else: the state stays on the device, where a rung's
program takes the rows of its images out of it. Images are grouped as on the target `onnx`, so that sums have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..profiles.manifest import EngineManifest, RungGraphs
from ..profiles.plan import ROWLESS
from ..profiles.schedule import Schedule
from .device import Device
from .loop import FloatArray, Images, Runner, walk_scales
from .planner import Rows, Source, Value, Walk
from .rungs import VIEWS, images_of, inputs_of, pick_rungs, rows_of, walk_to_decision

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[str, Walk, Mapping[str, Source], str], tuple[dict[str, "Tensor"], dict[str, float]]]
"""Runs a program: its name, walk, request and place, to results by name and milliseconds by name."""
START, END = "first scales", "decoder"
PLACE = "rung/"
"""Of the programs of rungs: what the first one left must outlive each of them."""


def draw_rungs(
    manifest: EngineManifest, schedule: Schedule, batch: int, request: Mapping[str, NDArray[Any]], run: Run, device: Device
) -> Images:
    """Draw B images, each as the rung it picks.

    Args:
        manifest: Says which plans run, and what goes in and out.
        schedule: With rungs.
        batch: Images B.
        request: As of `Engine.request`, its text padded.
        run: Runs a program.
        device: Where the programs run.
    """

    def start(inputs: Mapping[str, Value], runner: Runner[Value]) -> dict[str, Value]:
        return walk_to_decision(manifest, schedule, batch, inputs, runner)

    def end(inputs: Mapping[str, Value], runner: Runner[Value]) -> dict[str, Value]:
        return runner.run("decoder", manifest.decoder, {"summed": inputs["summed"]})

    # copies between programs go through the stream that the programs run on
    with device.stream():
        after, spent = run(START, start, request, "")
        picked = pick_rungs(schedule, lambda name: host(after[name]))
        summed = after["summed"].clone()
        for rung in manifest.rungs:
            images = images_of(rung, picked)
            # a rung may end at the decision
            if images and rung.scales:
                part = _part(manifest, after, request, images, batch)
                found, own = run(f"rung {rung.name}", _walk(manifest, rung, len(images)), part, PLACE)
                summed[images] = found["summed"]
                spent |= own
        decoded, own = run(END, end, {"summed": Rows(summed, _index(summed, range(batch)))}, "")
        return Images(host(decoded["image"]), {**spent, **own}, picked)


def host(tensor: Tensor) -> FloatArray:
    """A copy of a result in fp32."""
    found: FloatArray = tensor.float().cpu().numpy()
    return found.copy()


def _walk(manifest: EngineManifest, rung: RungGraphs, images: int) -> Walk:
    """The scales of a rung, for so many images."""

    def walk(inputs: Mapping[str, Value], runner: Runner[Value]) -> dict[str, Value]:
        guided = manifest.scales[-1].guidance
        state = walk_scales(rung.scales, inputs, guided, images, inputs, runner, label=f"{rung.name}: ")
        return {"summed": state["summed"]}

    return walk


def _part(
    manifest: EngineManifest,
    after: Mapping[str, Tensor],
    request: Mapping[str, NDArray[Any]],
    images: Sequence[int],
    batch: int,
) -> dict[str, Source]:
    """What a rung's program may read: the state of its images, and their part of the request."""
    guided, summed = manifest.scales[-1].guidance, after["summed"]
    one, both = (_index(summed, rows_of(name, images, batch, guided)) for name in ("summed", "k"))
    state = {name: Rows(value, one if name in ROWLESS else both) for name, value in after.items() if name not in VIEWS}
    return {**state, **inputs_of(request, images)}


def _index(value: Tensor, rows: Sequence[int]) -> Tensor:
    import torch

    return torch.from_numpy(np.array(rows, dtype=np.int64)).to(value.device)
