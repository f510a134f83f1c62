"""The noise a VAR image is drawn with: a function of its seed alone, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...profiles.model import ModelProfile
from ...profiles.var import VarConfig, VarSampling
from ..noise import gumbel_noise


def scale_noise(profile: ModelProfile, seed: int, scale: int) -> dict[str, NDArray[np.float32]]:
    """Noise of one scale of one image.

    Args:
        profile: Says how many tokens and codes there are, and whether codes are mixed softly.
        seed: Any whole number >= 0.
        scale: 0-based index.

    Returns:
        `noise` `[1, N, V]` Gumbel; where codes are mixed `smooth_noise`, the same.
    """
    config, sampling = profile.transformer, profile.sampling
    assert isinstance(config, VarConfig)
    assert isinstance(sampling, VarSampling)
    h, w = profile.sizes[scale]
    names = ("noise", "smooth_noise") if sampling.more_smooth else ("noise",)
    return {name: gumbel_noise(seed, scale, kind, (1, h * w, config.vocabulary)) for kind, name in enumerate(names)}
