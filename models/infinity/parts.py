"""The parts of an Infinity profile under their own types, for code that is this family's alone."""

from __future__ import annotations

from ...profiles.infinity import TransformerConfig, VaeConfig
from ...profiles.model import ModelProfile


def infinity_parts(profile: ModelProfile) -> tuple[TransformerConfig, VaeConfig]:
    """Shape of transformer and VAE."""
    assert isinstance(profile.transformer, TransformerConfig)
    assert isinstance(profile.vae, VaeConfig)
    return profile.transformer, profile.vae
