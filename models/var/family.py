"""VAR to the stages, see `models.family`."""

from __future__ import annotations

from ...profiles.plan import ScalePlan
from ...profiles.var import VarConfig
from ..load import LoadedModel
from ..vq.family import decoder, fast_decoder, fast_steps, ready_steps, stored, vae
from ..vq.vae import VqVae
from .step import VarStep
from .transformer import Var

__all__ = ["decoder", "fast_decoder", "fast_steps", "ready_steps", "step", "stored", "transformer", "vae"]


def transformer(config: VarConfig) -> Var:
    return Var(config)


def step(model: LoadedModel, plan: ScalePlan, observe: bool = False) -> VarStep:
    assert isinstance(model.transformer, Var)
    assert isinstance(model.vae, VqVae)
    return VarStep(model.transformer, model.vae.quantize, model.profile, plan, observe).eval()
