"""The cost table of the `cuda` target: every scale timed with all and some of its tokens, with one row or two, in any family.

A scale is drawn from a made-up state as an engine draws it, once as it is and once without its layers; the difference is what
its layers take, choosing, gathering and putting back tokens included. Picking a rung is what an image that picks and then runs
densely takes beyond the dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...models.family import ImageSteps, family_of
from ...models.generate import condition_rows
from ...models.load import LoadedModel
from ...models.state import State
from ...profiles.baselines import dense
from ...profiles.costs import CostTable, DecisionTime, LayerTime, ScaleTime
from ...profiles.geometry import tokens_through
from ...profiles.plan import FP32_STATE, NOISES, NUMBERS, ScalePlan, plan_scales
from ...profiles.schedule import TokenRule
from ...runtime.cuda_engine import make_program
from ...runtime.cuda_program import Captured
from ..cuda_timing import machine
from ..decision_probes import decision_probes
from .programs import Request, Times, interleaved

Decode = Callable[[Tensor], Tensor]
Drawn = Callable[[], object]
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
WHOLE_ONLY = 64
"""Scales of fewer tokens take the time to read the weights, however many tokens run."""


def cost_table(
    model: LoadedModel, request: Request, decode: Decode, dense_image: Drawn, parts: Mapping[str, Times], runs: int
) -> CostTable:
    """Measure.

    Args:
        model: On a GPU.
        request: Its batch and text are the table's.
        decode: Summed codes to images, as an engine's.
        dense_image: Draws it.
        parts: Times of its parts, by name: what is not layers is told from them.
        runs: Replays of each graph.
    """
    layers, scales = [], []
    schedule = dense(model.profile)
    for plan in plan_scales(schedule):
        count, whole = len(plan.layers), 2 if schedule.guided else 1
        for rows in sorted({1, whole}):
            # what goes on from cached keys first copies them: the scale without layers is given the same ones
            bare = _probe_ms(model, request, without_layers(plan, rows), with_tokens(plan, rows, plan.count), runs)
            for tokens in _counts(plan):
                probe = with_tokens(plan, rows, tokens)
                ms = (_probe_ms(model, request, probe, probe, runs) - bare) / count
                layers.append(LayerTime(scale=plan.scale, rows=rows, tokens=tokens, past=plan.past[0], ms=ms))
        dense_ms = next(e.ms for e in layers if (e.scale, e.rows, e.tokens) == (plan.scale, whole, plan.count))
        beside = parts[f"{plan.size[0]} x {plan.size[1]}"].median - count * dense_ms
        scales += [ScaleTime(scale=plan.scale, rows=rows, ms=beside) for rows in sorted({1, whole})]
    found = machine()
    return CostTable(
        target="cuda",
        device=found["gpu"],
        precision=str(model.weight.dtype).removeprefix("torch.").replace("bfloat16", "bf16").replace("float", "fp"),
        batch=request.text.shape[0],
        model=model.profile.name,
        versions={name: found[name] for name in ("torch", "triton", "cuda")},
        condition_ms=parts["condition"].median,
        decoder_ms=parts["decode"].median,
        layers=tuple(layers),
        scales=tuple(scales),
        notes={"runs": runs},
        decisions=tuple(_decision_times(model, request, decode, dense_image, runs)),
    )


@torch.inference_mode()
def _decision_times(
    model: LoadedModel, request: Request, decode: Decode, dense_image: Drawn, runs: int
) -> Iterator[DecisionTime]:
    """Of each way to pick, in turn with the dense image."""
    for schedule in decision_probes(model.profile):
        decision = schedule.decision
        assert decision is not None, "a probe picks"
        rows = condition_rows(model.transformer, request.text, request.lengths, schedule.guided)
        program = make_program(model, schedule, decode, rows[0], request.noise)
        program.write(*rows)
        ms = interleaved({"dense": dense_image, "picking": program.replay}, runs)
        more = ms["picking"].median - ms["dense"].median
        tokens = tokens_through(model.profile.sizes, decision.scale)
        yield DecisionTime(features=decision.features, tokens=tokens, ms=more)


def _counts(plan: ScalePlan) -> list[int]:
    if plan.count <= WHOLE_ONLY:
        return sorted({1, plan.count})
    return sorted({round(share * plan.count) for share in SHARES})


def without_layers(plan: ScalePlan, rows: int) -> ScalePlan:
    """A dense scale that only embeds its tokens and draws from them."""
    return replace(plan, guidance=rows == 2, drops_guidance=False, kept=(0,) * len(plan.kept), layers=())


def with_tokens(plan: ScalePlan, rows: int, tokens: int) -> ScalePlan:
    """A dense scale whose layers run some of its tokens, the others taking over the scale before."""
    plan = replace(plan, guidance=rows == 2, drops_guidance=False)
    if tokens == plan.count:
        return plan
    kept, before = (tokens,) * len(plan.kept), plan.scale - 1
    rule = TokenRule(kept=kept, score="entropy", fill="cache", cache_scale=before)
    return replace(plan, kept=kept, tokens=rule, entropy_from=before)


@torch.inference_mode()
def _probe_ms(model: LoadedModel, request: Request, plan: ScalePlan, reads: ScalePlan, runs: int) -> float:
    """Milliseconds of one scale on the state that `reads` reads, its memory given back: the largest takes gigabytes."""
    batch, fast_steps = request.text.shape[0], family_of(model.profile).fast_steps
    steps = fast_steps(model, [plan], batch)
    text = torch.cat([request.text] * plan.rows), torch.cat([request.lengths] * plan.rows)
    state = made_up_state(steps if reads is plan else fast_steps(model, [reads], batch), text, batch)
    graph = Captured(lambda: steps.resume(*text, state, request.noise))
    return interleaved({"": graph.replay}, runs)[""].median


def made_up_state(steps: ImageSteps, text: tuple[Tensor, Tensor], batch: int) -> State:
    """The condition, and at random what the first of the steps reads of earlier scales; noise and numbers come with a run."""
    step, condition = steps.steps[0], steps.begin(*text)
    sizes = {"B": batch, "R": len(text[0]), "T": text[0].shape[1]}
    found = State(condition)
    for name in step.input_names():
        if name in condition or name in {*NOISES, *NUMBERS}:
            continue
        shape = [sizes.get(n, n) if isinstance(n, str) else n for n in step.input_shape(name)]
        dtype = torch.float32 if name in FP32_STATE else step.dtype
        if name.startswith("delta"):
            # a map of the state is a view of tokens
            rows, width, h, w = (int(n) for n in shape)
            found[name] = torch.randn(rows, h * w, width, device=text[0].device).to(dtype).transpose(1, 2).unflatten(-1, (h, w))
        else:
            found[name] = torch.randn([int(n) for n in shape], device=text[0].device).to(dtype)
    return found
