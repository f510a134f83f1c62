"""Families of models to the stages: calibration, compilation and run time never ask which one they have.

A family is a package `models.<name>` with two modules, imported when they are needed: `family`, which offers the functions
of `Family`, and `noise`, which offers `scale_noise` and needs no torch. Its profile parts stand in `profiles.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..profiles.model import ModelProfile

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..profiles.plan import ScalePlan
    from ..profiles.schedule import Schedule
    from .load import LoadedModel
    from .state import State
    from .step import ScaleStep


class Family(Protocol):
    """What a family's module `family` offers."""

    def transformer(self, config: Any) -> nn.Module:
        """The transformer with weights yet to come; it is `models.generate.Conditioned`."""
        ...

    def vae(self, config: Any) -> nn.Module:
        """The VAE with weights yet to come."""
        ...

    def decoder(self, vae: Any) -> nn.Module:
        """Summed codes `[B, d, H, W]` to an image `[B, 3, h, w]`; shares the VAE's weights."""
        ...

    def stored(self, model: LoadedModel) -> Mapping[str, nn.Module]:
        """By prefix, modules whose weights the scales need beside the transformer's."""
        ...

    def step(self, model: LoadedModel, plan: ScalePlan, observe: bool = False) -> ScaleStep:
        """One scale, bound to the model's weights, in evaluation mode."""
        ...

    def fast_steps(self, model: LoadedModel, plans: Sequence[ScalePlan], batch: int) -> ImageSteps:
        """All scales for a number of images, as a GPU runs them fastest; weights are shared, never copied."""
        ...

    def ready_steps(self, model: LoadedModel, plans: Sequence[ScalePlan]) -> ImageSteps:
        """All scales for one image, with nothing to compile or capture first: for schedules that are run a few times."""
        ...

    def fast_decoder(self, decoder: Any) -> Callable[[Tensor], Tensor]:
        """The decoder as a GPU runs it fastest."""
        ...


class ImageSteps(Protocol):
    """All scales of a schedule in one call, which a CUDA graph can capture."""

    steps: Sequence[ScaleStep]

    def begin(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale, from features `[R, T, Ct]` and lengths `[R]`."""
        ...

    def run(self, text: Tensor, lengths: Tensor, noise: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Summed codes `[B, d, H, W]` from features `[R, T, Ct]`, lengths `[R]` and the noise of every scale."""
        ...

    def resume(self, text: Tensor, lengths: Tensor, state: State, noise: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The same for the last scales of an image, from the state that the ones before left."""
        ...


def family_of(profile: ModelProfile) -> Family:
    """The family of a profile."""
    family: Family = import_module(f".{profile.family}.family", __package__)
    return family


def stored_modules(model: LoadedModel) -> dict[str, nn.Module]:
    """By the prefix of their tensors in a bundle, the modules that draw an image."""
    return {"transformer": model.transformer, "vae.decoder": model.decoder, **family_of(model.profile).stored(model)}


def build_steps(model: LoadedModel, schedule: Schedule, observe: bool = False) -> tuple[ScaleStep, ...]:
    """A step for each scale that runs.

    Raises:
        ScheduleError: The schedule was made for another model or geometry, or leaves a choice to each image.
    """
    family = family_of(model.profile)
    return tuple(family.step(model, plan, observe) for plan in checked_plans(schedule, model.profile))


def checked_plans(schedule: Schedule, profile: ModelProfile) -> tuple[ScalePlan, ...]:
    """The scales that run, of a schedule that every image takes alike.

    Raises:
        ScheduleError: The schedule was made for another model or geometry, or leaves a choice to each image.
    """
    from ..profiles.errors import ScheduleError
    from ..profiles.plan import plan_scales

    schedule.check_model(profile)
    if schedule.rungs:
        raise ScheduleError(f"schedule {schedule.policy} has rungs; run it with build_rungs, or one of its paths alone")
    return plan_scales(schedule)


def noise_of(profile: ModelProfile, seeds: Sequence[int], scale: int) -> dict[str, NDArray[np.float32]]:
    """The noise of one scale of some images, by the names that its step reads; needs no torch.

    Args:
        profile: Says how many tokens there are, and what is drawn for each.
        seeds: One an image, >= 0; the numbers depend on seed and scale alone, not on the schedule.
        scale: 0-based index.

    Returns:
        `[B, N, ...]` fp32 each.
    """
    scale_noise = import_module(f".{profile.family}.noise", __package__).scale_noise
    images = [scale_noise(profile, seed, scale) for seed in seeds]
    # of one image nothing is copied: HART's noise has 314 MB
    return images[0] if len(images) == 1 else {name: np.concatenate([image[name] for image in images]) for name in images[0]}
