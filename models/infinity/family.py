"""Infinity to the stages, see `models.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...profiles.infinity import TransformerConfig, VaeConfig
from ...profiles.plan import ScalePlan
from ..family import ImageSteps
from ..fused_vae import FusedDecoder
from ..load import LoadedModel
from ..plain_steps import PlainSteps
from .fused import FusedSteps
from .step import ScaleStep
from .transformer import Infinity
from .vae import BsqVae, Decoder


def transformer(config: TransformerConfig) -> Infinity:
    return Infinity(config)


def vae(config: VaeConfig) -> BsqVae:
    return BsqVae(config)


def decoder(vae: BsqVae) -> nn.Module:
    return vae.decoder


def stored(model: LoadedModel) -> Mapping[str, nn.Module]:
    return {}


def fast_steps(model: LoadedModel, plans: Sequence[ScalePlan], batch: int) -> FusedSteps:
    assert isinstance(model.transformer, Infinity)
    return FusedSteps(model.transformer, model.profile, plans, batch)


def ready_steps(model: LoadedModel, plans: Sequence[ScalePlan]) -> ImageSteps:
    assert isinstance(model.transformer, Infinity)
    if model.weight.is_cuda:
        return fast_steps(model, plans, 1)
    # off a GPU the kernels' definitions are slower than the modules
    return PlainSteps(model.transformer, [step(model, plan) for plan in plans])


def fast_decoder(decoder: Decoder) -> FusedDecoder:
    return FusedDecoder(decoder)


def step(model: LoadedModel, plan: ScalePlan, observe: bool = False) -> ScaleStep:
    assert isinstance(model.transformer, Infinity)
    return ScaleStep(model.transformer, model.profile, plan, observe).eval()
