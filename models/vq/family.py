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
from .vae import ImageDecoder, VqVae


def vae(config: VqConfig) -> VqVae:
    return VqVae(config)


def decoder(vae: VqVae) -> ImageDecoder:
    return vae.image_decoder()


def stored(model: LoadedModel) -> Mapping[str, nn.Module]:
    assert isinstance(model.vae, VqVae)
    return {"vae.quantize": model.vae.quantize}


def fast_steps(model: LoadedModel, plans: Sequence[ScalePlan], batch: int) -> PlainSteps:
    family = family_of(model.profile)
    return PlainSteps(model.transformer, [family.step(model, plan) for plan in plans])


def fast_decoder(decoder: ImageDecoder) -> FusedDecoder:
    return FusedDecoder(decoder.decoder, decoder.post_quant_conv)
