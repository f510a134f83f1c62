"""The cost table of the `cuda` target: one layer timed at every scale, with some of its tokens, with one row or two.

A layer of some tokens is timed with what puts them back among the others; it runs the tokens of the layer before, as where
all layers of a scale keep the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.infinity.fused import FusedSteps
from ...models.infinity.rope import rope_table
from ...models.load import LoadedModel
from ...plugins.reused_tokens import put_back
from ...plugins.token_select import slots_of
from ...profiles.baselines import dense
from ...profiles.costs import CostTable, LayerTime, ScaleTime
from ...profiles.errors import ToprovarError
from ...profiles.geometry import Size, rope_reference
from ...profiles.plan import ScalePlan, plan_scales
from ...runtime.cuda_program import Captured
from ..cuda_timing import machine
from .programs import Request, Times, interleaved

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
LAYERS = 8
"""Different layers of one graph: their weights are larger than the cache."""
WHOLE_ONLY = 64
"""Scales of fewer tokens take the time to read the weights, however many tokens run."""


def cost_table(model: LoadedModel, request: Request, parts: Mapping[str, Times], runs: int) -> CostTable:
    """Measure.

    Args:
        model: On a GPU, of a family with fused blocks.
        request: Its batch and text are the table's.
        parts: Times of the parts of the dense image, by name: what is not layers is told from them.
        runs: Replays of each graph.
    """
    batch, profile = request.text.shape[0], model.profile
    schedule = dense(profile)
    plans = plan_scales(schedule)
    steps = FusedSteps(model.transformer, profile, plans, batch)
    rows = 2 if schedule.guided else 1
    text = (torch.cat([request.text] * rows), torch.cat([request.lengths] * rows))
    layers, scales = [], []
    with torch.inference_mode():
        state = steps.begin(*text)
        for plan in plans:
            # all numbers of tokens of a scale in turn
            points = {(r, n): _layers(steps, state, plan, r, n, batch) for r in {1, rows} for n in _counts(plan)}
            timed = interleaved({f"{r} {n}": graph for (r, n), graph in points.items()}, runs)
            ms = {(r, n): timed[f"{r} {n}"].median / LAYERS for r, n in points}
            layers += [LayerTime(scale=plan.scale, rows=r, tokens=n, past=plan.past[0], ms=ms[r, n]) for r, n in points]
            beside = parts[f"{plan.size[0]} x {plan.size[1]}"].median - len(plan.layers) * ms[rows, plan.count]
            scales += [ScaleTime(scale=plan.scale, rows=r, ms=beside) for r in sorted({1, rows})]
    found = machine()
    return CostTable(
        target="cuda",
        device=found["gpu"],
        precision=str(model.weight.dtype).removeprefix("torch.").replace("bfloat16", "bf16").replace("float", "fp"),
        batch=batch,
        model=profile.name,
        versions={name: found[name] for name in ("torch", "triton", "cuda")},
        condition_ms=parts["condition"].median,
        decoder_ms=parts["decode"].median,
        layers=tuple(layers),
        scales=tuple(scales),
        notes={"runs": runs, "layers a graph": LAYERS},
    )


def _counts(plan: ScalePlan) -> list[int]:
    if plan.count <= WHOLE_ONLY:
        return sorted({1, plan.count})
    return sorted({round(share * plan.count) for share in SHARES})


def _layers(
    steps: FusedSteps, state: Mapping[str, Tensor], plan: ScalePlan, rows: int, tokens: int, batch: int
) -> Callable[[], object]:
    """A graph of LAYERS different layers of a scale on some of its tokens."""
    model, config = steps.model, steps.model.config
    if config.depth < LAYERS:
        raise ToprovarError(f"a cost table takes {LAYERS} layers, the model has {config.depth}; time its schedules instead")
    like = model.pos_start
    x = torch.randn(rows * batch, tokens, config.width, device=like.device, dtype=like.dtype)
    table = rope_table(plan.size, rope_reference(steps.steps[0].profile.aspect_ratio), config.head_width).to(like.device)
    rope = (table[0, :tokens], table[1, :tokens])
    put = _put_back(plan, steps.steps[0].profile.sizes, x) if tokens < plan.count else None
    blocks: list[Any] = list(steps.steps[0].blocks())[: config.depth : config.depth // LAYERS][:LAYERS]
    steps.workspace.plan = plan

    def run() -> None:
        y = x
        for block in blocks:
            place = block.layer
            text = (state[f"ca_k.{place}"][: len(x)], state[f"ca_v.{place}"][: len(x)], state["mask"][: len(x)])
            past = plan.past[place]
            _, every = steps.arena.place(place, plan.scale, len(x), past, 0)
            y = block(y, state["shared"], rope, text, (every[0], every[1]) if past else None, False)[0]
            if put is not None:
                put(y)

    return Captured(run).replay


def _put_back(plan: ScalePlan, sizes: Sequence[Size], x: Tensor) -> Callable[[Tensor], object]:
    """Puts tokens shaped as x back into a stream, the others by the update of the scale before."""
    source, (rows, count, width) = sizes[plan.scale - 1], x.shape
    stream, cached = (torch.randn(rows, n, width).to(x) for n in (plan.count, source[0] * source[1]))
    order = torch.randperm(plan.count, generator=torch.Generator().manual_seed(0))[:count].sort().values
    slots = slots_of(order.to(x.device).expand(rows, -1), plan.count)
    return lambda part: put_back(stream, part, slots, cached, source, plan.size)
