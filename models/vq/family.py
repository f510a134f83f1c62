"""What the families on the shared VQVAE offer alike, see `models.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...profiles.plan import ScalePlan
from ...profiles.vq import VqConfig
from ..family import family_of
from ..fused_vae import FusedDecoder
from ..load import LoadedModel
from ..plain_steps import PlainSteps
from ..step import ScaleStep
from .vae import ImageDecoder, VqVae


def vae(config: VqConfig) -> VqVae:
    return VqVae(config)


def decoder(vae: VqVae) -> ImageDecoder:
    return vae.image_decoder()


def stored(model: LoadedModel) -> Mapping[str, nn.Module]:
    assert isinstance(model.vae, VqVae)
    return {"vae.quantize": model.vae.quantize}


def fast_steps(model: LoadedModel, plans: Sequence[ScalePlan], batch: int) -> PlainSteps:
    return PlainSteps(model.transformer, _steps(model, plans))


def ready_steps(model: LoadedModel, plans: Sequence[ScalePlan]) -> PlainSteps:
    return PlainSteps(model.transformer, _steps(model, plans), compiled=False)


def _steps(model: LoadedModel, plans: Sequence[ScalePlan]) -> list[ScaleStep]:
    family = family_of(model.profile)
    return [family.step(model, plan) for plan in plans]


def fast_decoder(decoder: ImageDecoder) -> FusedDecoder:
    return FusedDecoder(decoder.decoder, decoder.post_quant_conv)
