"""The noise an Infinity image is drawn with: a slice of one stream an image, without torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...profiles.infinity import TransformerConfig
from ...profiles.model import ModelProfile
from ..noise import image_noise

# a request asks for each image's scales in turn
_image_noise = lru_cache(maxsize=4)(image_noise)


def scale_noise(profile: ModelProfile, seed: int, scale: int) -> dict[str, NDArray[np.float32]]:
    """`noise` `[1, N, bits]` of one scale of one image, uniform in [0, 1)."""
    config = profile.transformer
    assert isinstance(config, TransformerConfig)
    counts = [h * w for h, w in profile.sizes]
    start = sum(counts[:scale])
    # a copy: the stream is handed out again
    return {"noise": _image_noise(seed, sum(counts), config.token_bits)[None, start : start + counts[scale]].copy()}
