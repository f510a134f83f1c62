"""The noise an image is drawn with: a function of its seed alone, the same on every target and without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def image_noise(seed: int, tokens: int, bits: int) -> NDArray[np.float32]:
    """Uniform noise of one image.

    Args:
        seed: Any whole number >= 0.
        tokens: Tokens of all scales of the full schedule, also those that a schedule leaves out: a pruned image draws the
            same numbers at the same places as the dense one.
        bits: Bits a token.

    Returns:
        `[tokens, bits]` fp32 in [0, 1).
    """
    # Philox is counter-based: the same stream on every machine and version of NumPy
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.random((tokens, bits), dtype=np.float32)


def scale_stream(seed: int, scale: int, kind: int) -> np.random.Generator:
    """A stream of its own for each scale and kind of noise: a schedule that leaves a scale out changes no other's."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, scale, kind]))


def gumbel_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """-log(-log u), u uniform: the code with the largest sum of logit and noise is distributed as softmax of the logits."""
    uniform = generator.random(shape, dtype=np.float32)
    # 0 has no logarithm; half the smallest step is as likely
    return -np.log(-np.log(np.maximum(uniform, np.float32(2.0**-25))))
