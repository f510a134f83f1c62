"""A small model in half precision, and how far its compiled blocks are from fp32 beside the eager ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from matrix_cases import PROMPTS
from toprovar.models.family import family_of
from toprovar.models.generate import condition_rows, image_noise
from toprovar.models.load import LoadedModel
from toprovar.models.state import State
from toprovar.profiles.plan import FP32_STATE, ScalePlan


def in_half(model: LoadedModel, dtype: torch.dtype, device: torch.device | str) -> LoadedModel:
    """A copy on a device."""
    transformer, vae = (copy.deepcopy(module).to(device, dtype) for module in (model.transformer, model.vae))
    return replace(model, transformer=transformer, vae=vae)


@torch.inference_mode()
def error_ratio(model: LoadedModel, plans: Sequence[ScalePlan]) -> float:
    """Error of the fast steps over that of the eager ones, against fp32: keys of the last layer, all scales but the last.

    Every scale starts from the state that fp32 left, rounded: what an earlier scale drew is the same for all three.
    """
    family, exact = family_of(model.profile), replace(model, transformer=copy.deepcopy(model.transformer).float())
    text = model.text.encode_prompts(PROMPTS["var" if model.profile.family == "var" else "hart"][:1])
    rows = condition_rows(exact.transformer, text.features.to(model.weight.device), text.lengths.to(model.weight.device), True)
    fast = family.fast_steps(model, plans, 1).steps
    noise, state, errors = image_noise(model.profile, [3], model.weight.device), exact.transformer.initial_state(*rows), []
    for plan, fast_step in zip(plans, fast, strict=True):
        if plan.last:
            break
        entering = _entering(model, plan, {**state, **noise[plan.scale]})
        name, whole = f"k.{plan.layers[-1]}", {key: value.float() for key, value in entering.items()}
        found = family.step(exact, plan)(whole)
        reference, others = found[name], [step(entering)[name].float() for step in (fast_step, family.step(model, plan))]
        errors.append([float((other - reference).square().sum()) for other in others])
        state = {**whole, **found}
    ours, eager = (sum(column) for column in zip(*errors, strict=True))
    return float((ours / eager) ** 0.5)


def _entering(model: LoadedModel, plan: ScalePlan, state: State) -> State:
    """What a scale of the model reads: rounded to its dtype, where that is not fp32 in every model."""
    sampling, dtype = model.profile.sampling, model.weight.dtype
    scales = len(model.profile.sizes)
    numbers = {n: state["noise"].new_full((1,), sampling.per_scale(n, scales)[plan.scale]) for n in sampling.controls}
    return {key: v if key in FP32_STATE else v.to(dtype) for key, v in {**state, **numbers}.items()}
