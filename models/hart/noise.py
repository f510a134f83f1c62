"""The noise a HART image is drawn with: a function of its seed alone, without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...profiles.hart import HartConfig, HartSampling
from ...profiles.model import ModelProfile
from ..noise import gumbel_noise, scale_stream


def scale_noise(profile: ModelProfile, seed: int, scale: int) -> dict[str, NDArray[np.float32]]:
    """Noise of one scale of one image.

    Args:
        profile: Says how many tokens and codes there are, and whether codes are mixed softly.
        seed: Any whole number >= 0.
        scale: 0-based index.

    Returns:
        `noise` `[1, N, V]` Gumbel, where a code is drawn; where codes are mixed `smooth_noise`, the same; and at the last
        scale `diffusion_noise` `[1, N, steps, d]` normal.
    """
    config, sampling = profile.transformer, profile.sampling
    assert isinstance(config, HartConfig)
    assert isinstance(sampling, HartSampling)
    h, w = profile.sizes[scale]
    names = ("noise", "smooth_noise") if sampling.more_smooth else ("noise",)
    found = {name: gumbel_noise(seed, scale, kind, (1, h * w, config.vocabulary)) for kind, name in enumerate(names)}
    if scale == len(profile.sizes) - 1:
        shape = (1, h * w, config.diffusion_steps, config.latent_channels)
        found["diffusion_noise"] = scale_stream(seed, scale, len(names)).standard_normal(shape, dtype=np.float32)
    return found
