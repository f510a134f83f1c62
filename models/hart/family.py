"""HART to the stages, see `models.family`."""

from __future__ import annotations

from ...profiles.hart import HartConfig
from ...profiles.plan import ScalePlan
from ..load import LoadedModel
from ..vq.family import decoder, fast_decoder, fast_steps, ready_steps, stored, vae
from ..vq.vae import VqVae
from .step import HartStep
from .transformer import Hart

__all__ = ["decoder", "fast_decoder", "fast_steps", "ready_steps", "step", "stored", "transformer", "vae"]


def transformer(config: HartConfig) -> Hart:
    return Hart(config)


def step(model: LoadedModel, plan: ScalePlan, observe: bool = False) -> HartStep:
    assert isinstance(model.transformer, Hart)
    assert isinstance(model.vae, VqVae)
    return HartStep(model.transformer, model.vae.quantize, model.profile, plan, observe).eval()
