"""HART to the stages, see `models.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...profiles.hart import HartConfig
from ...profiles.plan import ScalePlan
from ...profiles.vq import VqConfig
from ..fused_vae import FusedDecoder
from ..load import LoadedModel
from ..plain_steps import PlainSteps
from ..vq.vae import ImageDecoder, VqVae
from .step import HartStep
from .transformer import Hart


def transformer(config: HartConfig) -> Hart:
    return Hart(config)


def vae(config: VqConfig) -> VqVae:
    return VqVae(config)


def decoder(vae: VqVae) -> ImageDecoder:
    return vae.image_decoder()


def stored(model: LoadedModel) -> Mapping[str, nn.Module]:
    assert isinstance(model.vae, VqVae)
    return {"vae.quantize": model.vae.quantize}


def fast_steps(model: LoadedModel, plans: Sequence[ScalePlan], batch: int) -> PlainSteps:
    return PlainSteps(model.transformer, [step(model, plan) for plan in plans])


def fast_decoder(decoder: ImageDecoder) -> FusedDecoder:
    return FusedDecoder(decoder.decoder, decoder.post_quant_conv)


def step(model: LoadedModel, plan: ScalePlan, observe: bool = False) -> HartStep:
    assert isinstance(model.transformer, Hart)
    assert isinstance(model.vae, VqVae)
    return HartStep(model.transformer, model.vae.quantize, model.profile, plan, observe).eval()
