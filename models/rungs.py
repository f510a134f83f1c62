"""Schedules with rungs in torch, for every family: images share the first scales, then each picks its rung and ends so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..profiles.decision import Decision, observe
from ..profiles.model import ModelProfile
from ..profiles.plan import NUMBERS, ROWLESS, ScalePlan, plan_paths
from ..profiles.schedule import Schedule
from .family import family_of
from .generate import Noise, condition_rows, run_scales
from .load import LoadedModel
from .resize import resize
from .state import State
from .step import ScaleStep


class View(nn.Module):
    """Summed codes to a small image: what a decision looks at. Both are fp32, between them the decoder's own dtype."""

    def __init__(self, decoder: Callable[[Tensor], Tensor], profile: ModelProfile, decision: Decision) -> None:
        super().__init__()
        assert decision.view is not None, "only the features 'detail' look at images"
        (h, w), side = profile.sizes[decision.view], profile.transformer.token_side
        self.decoder, self.size = decoder, (h * side, w * side)

    def forward(self, summed: Tensor) -> Tensor:
        """`[B, d, H, W]` -> `[B, 3, h, w]` in [-1, 1]."""
        return self.decoder(resize(summed, self.size)).float().clamp(-1, 1)


@dataclass(frozen=True)
class Rungs:
    """A schedule with rungs, bound to a model.

    Attributes:
        model: All weights.
        decision: When and by what an image picks its rung.
        shared: Steps up to the decision.
        tails: Steps after it, by rung.
        view: Decodes what the decision looks at, where it looks at images.
    """

    model: LoadedModel
    decision: Decision
    shared: tuple[ScaleStep, ...]
    tails: dict[str, tuple[ScaleStep, ...]]
    view: View | None


def split_plans(schedule: Schedule) -> tuple[tuple[ScalePlan, ...], dict[str, tuple[ScalePlan, ...]]]:
    """The scales up to the decision, and those after it by rung; of a rung that ends there none."""
    decision, paths = schedule.decision, plan_paths(schedule)
    assert decision is not None, "only a schedule with a decision has rungs"
    tails = {
        rung.name: tuple(plan for plan in path if plan.scale > decision.scale)
        for rung, path in zip(schedule.rungs, paths, strict=True)
    }
    return tuple(plan for plan in paths[0] if plan.scale <= decision.scale), tails


def build_rungs(model: LoadedModel, schedule: Schedule) -> Rungs:
    """Steps of every rung; scales that compute the same are one step.

    Raises:
        ScheduleError: The schedule was made for another model or geometry.
    """
    schedule.check_model(model.profile)
    family, decision, made = family_of(model.profile), schedule.decision, dict[ScalePlan, ScaleStep]()
    assert decision is not None, "a schedule without rungs goes through build_steps"
    first, ends = split_plans(schedule)
    for plan in (*first, *(plan for end in ends.values() for plan in end)):
        if plan not in made:
            made[plan] = family.step(model, plan)
    shared = tuple(made[plan] for plan in first)
    tails = {name: tuple(made[plan] for plan in end) for name, end in ends.items()}
    view = View(model.decoder, model.profile, decision) if decision.features == "detail" else None
    return Rungs(model, decision, shared, tails, view)


@torch.inference_mode()
def generate_rungs(
    rungs: Rungs, text: Tensor, lengths: Tensor, noise: Noise, negative: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Draw B images, each as the rung it picks.

    Args:
        rungs: From `build_rungs`.
        text: `[B, T, Ct]` text features, zero-padded.
        lengths: `[B]` int64.
        noise: Of every scale of the full schedule.
        negative: Features and lengths of negative prompts, or None for the learned unconditional vectors.

    Returns:
        Summed codes `[B, d, H, W]` and the name of each image's rung.
    """
    model, guided = rungs.model.transformer, rungs.shared[-1].plan.guidance
    rows = condition_rows(model, text, lengths, rungs.shared[0].plan.guidance, negative)
    before = run_scales(rungs.shared[:-1], model.initial_state(*rows), noise)
    state = run_scales(rungs.shared[-1:], before, noise)
    picked = decide(rungs, before, state)
    summed = state["summed"].clone()
    for name in sorted(set(picked)):
        images = [index for index, found in enumerate(picked) if found == name]
        part = take_images(state, images, len(summed), guided)
        own = [{key: value[images] for key, value in scale.items()} for scale in noise]
        summed[images] = run_scales(rungs.tails[name], part, own)["summed"]
    return summed, picked


def decide(rungs: Rungs, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The rung of each image, from the state before and after the scale of the decision."""
    view = rungs.view
    features = observe(
        rungs.decision,
        lambda: after["entropy"].cpu().numpy(),
        lambda: tuple(view(state["summed"]).cpu().numpy() for state in (before, after)) if view is not None else (),
    )
    return rungs.decision.pick(features)


def take_images(state: Mapping[str, Tensor], images: Sequence[int], batch: int, guided: bool) -> State:
    """The state of some of the images: their conditional rows and, with guidance, their unconditional ones."""
    rows = [*images, *(batch + index for index in images)] if guided else list(images)
    return {
        name: value if name in NUMBERS else value[list(images) if name in ROWLESS else rows] for name, value in state.items()
    }
