"""Text features to images in torch: the reference loop that every target is held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...profiles.model import ModelProfile
from ...profiles.plan import ScalePlan, plan_scales
from ...profiles.schedule import Schedule
from .step import ScaleStep, State, narrow_rows
from .transformer import Condition, Infinity

OnScale = Callable[[ScalePlan, State], None]


def condition_rows(
    model: Infinity, text: Tensor, lengths: Tensor, guided: bool, negative: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Text features of all rows: conditional, then (guided) unconditional.

    The unconditional rows are the learned vectors, cut to the *same length* as the prompt; with a negative prompt they are
    its features with their own lengths.

    Args:
        model: Holds the learned unconditional vectors.
        text: `[B, T, Ct]` zero-padded features.
        lengths: `[B]` int64.
        guided: Whether unconditional rows are wanted.
        negative: Features and lengths of the negative prompts, `[B, T', Ct]` and `[B]`.

    Returns:
        `[R, T, Ct]` and `[R]`.
    """
    if not guided:
        return text, lengths
    if negative is None:
        other, other_lengths = model.unconditional(text.shape[0], text.shape[1]).to(text.dtype), lengths
    else:
        other, other_lengths = negative
    longest = max(text.shape[1], other.shape[1])
    pad = [torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in (text, other)]
    return torch.cat(pad), torch.cat([lengths, other_lengths])


def initial_state(condition: Condition) -> State:
    """The state before the first scale."""
    state = State(sos=condition.sos, shared=condition.shared, head=condition.head, mask=condition.mask)
    for layer, (k, v) in enumerate(zip(condition.keys, condition.values, strict=True)):
        state[f"ca_k.{layer}"], state[f"ca_v.{layer}"] = k, v
    return state


def build_steps(model: Infinity, profile: ModelProfile, schedule: Schedule, observe: bool = False) -> tuple[ScaleStep, ...]:
    """A step for each scale that runs.

    Raises:
        ScheduleError: The schedule was made for another model or geometry.
    """
    schedule.check_model(profile)
    return tuple(ScaleStep(model, profile, plan, observe).eval() for plan in plan_scales(schedule))


@torch.inference_mode()
def generate(
    steps: Sequence[ScaleStep],
    text: Tensor,
    lengths: Tensor,
    noise: Tensor,
    negative: tuple[Tensor, Tensor] | None = None,
    on_scale: OnScale | None = None,
) -> Tensor:
    """Run all scales.

    Args:
        steps: From `build_steps`.
        text: `[B, T, Ct]` text features, zero-padded.
        lengths: `[B]` int64.
        noise: `[B, tokens of the full schedule, token bits]`, uniform in [0, 1).
        negative: Features and lengths of negative prompts, or None for the learned unconditional vectors.
        on_scale: Called after each scale with its plan and the tensors it returned.

    Returns:
        Summed codes `[B, d, H, W]`, the decoder's input.
    """
    model = steps[0].model
    rows = condition_rows(model, text, lengths, steps[0].plan.guidance, negative)
    return run_scales(steps, initial_state(model.condition(*rows)), noise, on_scale)["summed"]


def run_scales(steps: Sequence[ScaleStep], state: State, noise: Tensor, on_scale: OnScale | None = None) -> State:
    """Run scales from any state that fits the first of them, such as the one an earlier run left before that scale.

    Args:
        steps: From `build_steps`, or the end of them.
        state: Is not changed.
        noise: `[B, tokens of the full schedule, token bits]`.
        on_scale: As of `generate`.

    Returns:
        The state after the last step.
    """
    state = State(state)
    for step in steps:
        plan, profile = step.plan, step.profile
        if plan.drops_guidance:
            state = narrow_rows(state, noise.shape[0])
        state["noise"] = noise[:, plan.offset : plan.offset + plan.count]
        for name in ("cfg", "tau"):
            value = profile.sampling.per_scale(name, len(profile.sizes))[plan.scale]
            state[name] = noise.new_tensor([value])
        out = step(state)
        if on_scale is not None:
            on_scale(plan, out)
        state.update({name: out[name] for name in step.output_names()})
    return state
