"""VAR to the stages, see `models.family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...profiles.plan import ScalePlan
from ...profiles.var import VarConfig
from ...profiles.vq import VqConfig
from ..fused_vae import FusedDecoder
from ..load import LoadedModel
from ..plain_steps import PlainSteps
from ..vq.vae import ImageDecoder, VqVae
from .step import VarStep
from .transformer import Var


def transformer(config: VarConfig) -> Var:
    return Var(config)


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


def step(model: LoadedModel, plan: ScalePlan, observe: bool = False) -> VarStep:
    assert isinstance(model.transformer, Var)
    assert isinstance(model.vae, VqVae)
    return VarStep(model.transformer, model.vae.quantize, model.profile, plan, observe).eval()
