"""The gate before any time is printed: are the fused blocks as exact as the eager ones?"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...models.family import family_of
from ...models.load import LoadedModel
from ...models.state import State
from ...profiles.baselines import dense
from ...profiles.plan import plan_scales
from .programs import Request


@torch.inference_mode()
def worst_ratio(model: LoadedModel) -> float:
    """Error of the fused blocks over that of the eager ones, against fp32: keys of the last layer at the first scale.

    Later scales draw bits, after which two images of one seed may differ; the tests hold them on models in fp32.
    """
    plan = plan_scales(dense(model.profile))[0]
    layer = plan.layers[-1]
    request = Request.make(model, 1, 8)
    rows = (torch.cat([request.text] * plan.rows), torch.cat([request.lengths] * plan.rows))
    family = family_of(model.profile)
    controls = {name: torch.ones(1, device=request.text.device) for name in model.profile.sampling.controls}

    def keys(step: object, state: State) -> Tensor:
        found: Tensor = step({**state, **request.noise[0], **controls})[f"k.{layer}"]  # type: ignore[operator]
        return found.float()

    steps = family.fast_steps(model, plan_scales(dense(model.profile)), 1)
    fused = keys(steps.steps[0], steps.begin(*rows))
    eager = keys(family.step(model, plan), model.transformer.initial_state(*rows))
    exact = _in_fp32(model)
    reference = keys(family.step(exact, plan), exact.transformer.initial_state(*rows))
    return float((fused - reference).norm() / (eager - reference).norm().clamp_min(1e-9 * reference.norm()))


def _in_fp32(model: LoadedModel) -> LoadedModel:
    """The same model in fp32, for as long as the check lasts."""
    from dataclasses import replace

    return replace(model, transformer=copy.deepcopy(model.transformer).float())
