"""From text features to summed codes in torch, for every family: the reference loop that every target is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..profiles.model import ModelProfile
from ..profiles.plan import ScalePlan
from .family import noise_of
from .state import State, narrow_rows
from .step import ScaleStep

OnScale = Callable[[ScalePlan, State], None]
Noise = Sequence[Mapping[str, Tensor]]
"""Of every scale of the full schedule, by the names that its steps read, `[B, ...]` each."""


class Conditioned(Protocol):
    """What the loop needs of a family's transformer."""

    def initial_state(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale: all that depends on the rows' texts alone."""
        ...

    def unconditional(self, batch: int, length: int) -> Tensor:
        """Features of the unconditional rows, `[B, T, Ct]`."""
        ...


def image_noise(profile: ModelProfile, seeds: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """The noise of all scales of some images, by their seeds."""
    scales = range(len(profile.sizes))
    return [{k: torch.from_numpy(v).to(device) for k, v in noise_of(profile, seeds, scale).items()} for scale in scales]


def condition_rows(
    model: Conditioned, text: Tensor, lengths: Tensor, guided: bool, negative: tuple[Tensor, Tensor] | None = None
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
    pad = [F.pad(t, (0, 0, 0, longest - t.shape[1])) for t in (text, other)]
    return torch.cat(pad), torch.cat([lengths, other_lengths])


@torch.inference_mode()
def generate(
    model: Conditioned,
    steps: Sequence[ScaleStep],
    text: Tensor,
    lengths: Tensor,
    noise: Noise,
    negative: tuple[Tensor, Tensor] | None = None,
    on_scale: OnScale | None = None,
) -> Tensor:
    """Run all scales.

    Args:
        model: The transformer that `steps` are bound to.
        steps: One for each scale that runs.
        text: `[B, T, Ct]` text features, zero-padded.
        lengths: `[B]` int64.
        noise: Of every scale of the full schedule.
        negative: Features and lengths of negative prompts, or None for the learned unconditional vectors.
        on_scale: Called after each scale with its plan and the tensors it returned.

    Returns:
        Summed codes `[B, d, H, W]`, the decoder's input.
    """
    rows = condition_rows(model, text, lengths, steps[0].plan.guidance, negative)
    return run_scales(steps, model.initial_state(*rows), noise, on_scale)["summed"]


def run_scales(steps: Sequence[ScaleStep], state: State, noise: Noise, on_scale: OnScale | None = None) -> State:
    """Run scales from any state that fits the first of them, such as the one an earlier run left before that scale.

    Args:
        steps: Steps of consecutive scales.
        state: Is not changed.
        noise: Of every scale of the full schedule.
        on_scale: As of `generate`.

    Returns:
        The state after the last step.
    """
    state = State(state)
    for step in steps:
        plan, profile = step.plan, step.profile
        state.update(noise[plan.scale])
        if plan.drops_guidance:
            state = narrow_rows(state, state["noise"].shape[0])
        for name in profile.sampling.controls:
            value = profile.sampling.per_scale(name, len(profile.sizes))[plan.scale]
            state[name] = state["noise"].new_full((1,), value)
        out = step(state)
        if on_scale is not None:
            on_scale(plan, out)
        state.update({name: out[name] for name in step.output_names()})
    return state
