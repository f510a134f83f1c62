"""What is timed: eager steps, a captured image, and the same image cut into one graph a scale."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.family import ImageSteps, build_steps, family_of, noise_of
from ...models.generate import condition_rows, generate
from ...models.infinity.vae import to_uint8
from ...models.load import LoadedModel
from ...models.state import State, narrow_rows
from ...profiles.plan import plan_scales
from ...profiles.schedule import Schedule
from ...runtime.cuda_program import Captured, CudaProgram, text_capacity

Noise = Sequence[Mapping[str, Tensor]]
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Request:
    """What every candidate draws from.

    Attributes:
        text: `[B, T, Ct]` features.
        lengths: `[B]`.
        noise: Of every scale.
    """

    text: Tensor
    lengths: Tensor
    noise: Noise

    @classmethod
    def make(cls, model: LoadedModel, batch: int, text_tokens: int) -> Request:
        """Features of a prompt of about `text_tokens` tokens, or of a class, padded as in an engine; seeds from 0 on."""
        device, profile = model.weight.device, model.profile
        prompt = "0" if profile.text.kind == "classes" else " ".join(["word"] * max(1, text_tokens - 1))
        found = model.text.encode_prompts([prompt] * batch)
        capacity = text_capacity(found.features.shape[1], profile.text.max_length)
        text = F.pad(found.features.float(), (0, 0, 0, capacity - found.features.shape[1]))
        noise = [
            {name: torch.from_numpy(value).to(device) for name, value in noise_of(profile, range(batch), scale).items()}
            for scale in range(len(profile.sizes))
        ]
        return cls(text.to(device), found.lengths.to(device), noise)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that draws the request.

    Attributes:
        run: Draws once.
        peak_gib: Memory that it needs at most, weights included.
        parts: Makes what draws single parts, by name, each from what the part before left; gigabytes while it is held.
    """

    run: Callable[[], object]
    peak_gib: float
    parts: Callable[[], dict[str, Callable[[], object]]] | None = None


def eager(model: LoadedModel, schedule: Schedule, request: Request) -> Candidate:
    """Our module as it is, launch by launch: what the official code does."""
    steps = build_steps(model, schedule)

    @torch.inference_mode()
    def run() -> Tensor:
        summed = generate(model.transformer, steps, request.text, request.lengths, request.noise)
        return to_uint8(model.decoder(summed).float())

    torch.cuda.reset_peak_memory_stats()
    run()
    return Candidate(run, torch.cuda.max_memory_allocated() / GIB)


@torch.inference_mode()
def captured(model: LoadedModel, schedule: Schedule, request: Request, decode: Callable[[Tensor], Tensor]) -> Candidate:
    """The image in one CUDA graph, as `run-engine` replays it, and its parts in graphs of their own."""
    batch = request.text.shape[0]
    rows = condition_rows(model.transformer, request.text, request.lengths, schedule.guided)
    others = torch.cuda.memory_allocated() - _bytes(model)
    torch.cuda.reset_peak_memory_stats()
    steps = family_of(model.profile).fast_steps(model, plan_scales(schedule), batch)
    program = CudaProgram(steps, decode, rows[0], request.noise)
    program.write(*rows)
    program.replay()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - others
    return Candidate(program.replay, peak / GIB, lambda: _parts(steps, decode, rows, request.noise))


@torch.inference_mode()
def _parts(
    steps: ImageSteps, decode: Callable[[Tensor], Tensor], rows: tuple[Tensor, Tensor], noise: Noise
) -> dict[str, Callable[[], object]]:
    pool = torch.cuda.graph_pool_handle()
    parts: dict[str, Callable[[], object]] = {}
    state: State = {}

    def keep(name: str, call: Callable[[], Mapping[str, Tensor]]) -> None:
        nonlocal state

        found: dict[str, Tensor] = {}
        parts[name] = Captured(lambda: found.update(call()), pool).replay
        state = {**state, **found}

    keep("condition", lambda: steps.begin(*rows))
    for step in steps.steps:
        plan = step.plan
        if plan.drops_guidance:
            state = narrow_rows(state, next(iter(noise[0].values())).shape[0])
        sampling = step.profile.sampling
        numbers = {name: sampling.per_scale(name, len(step.profile.sizes))[plan.scale] for name in sampling.controls}
        controls = {name: state["sos"].new_full((1,), value, dtype=torch.float32) for name, value in numbers.items()}
        entering = {**state, **noise[plan.scale], **controls}
        keep(f"{plan.size[0]} x {plan.size[1]}", lambda step=step, entering=entering: step(entering))  # type: ignore[misc]
    keep("decode", lambda: {"image": to_uint8(decode(state["summed"]).float())})
    return parts


def _bytes(model: LoadedModel) -> int:
    modules = (model.transformer, model.vae)
    return sum(t.numel() * t.element_size() for module in modules for t in module.state_dict().values())


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds: median, least, most."""

    median: float
    low: float
    high: float


def interleaved(calls: Mapping[str, Callable[[], object]], runs: int, warm: int = 3) -> dict[str, Times]:
    """Time all calls in turn, so that a drift of the clocks falls on all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(-warm, runs):
        for name, call in calls.items():
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 0:
                samples[name].append(start.elapsed_time(end))
    return {name: Times(statistics.median(values), min(values), max(values)) for name, values in samples.items()}
