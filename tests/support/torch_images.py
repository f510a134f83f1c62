"""The images that torch draws of a schedule, to hold engines to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from toprovar.models.family import build_steps
from toprovar.models.generate import generate, image_noise
from toprovar.models.load import LoadedModel
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.schedule import Schedule


@torch.inference_mode()
def torch_images(
    model: LoadedModel, schedule: Schedule, features: torch.Tensor, lengths: torch.Tensor, seeds: Sequence[int]
) -> NDArray[Any]:
    """`[B, T, C]`, `[B]` and a seed an image -> `[B, 3, h, w]` in [-1, 1]; of rungs each image runs the one it picks."""
    noise = image_noise(model.profile, seeds)
    if schedule.rungs:
        summed, _ = generate_rungs(build_rungs(model, schedule), features, lengths, noise)
    else:
        summed = generate(model.transformer, build_steps(model, schedule), features, lengths, noise)
    images: NDArray[Any] = model.decoder(summed).clamp(-1, 1).numpy()
    return images
