"""The noise an image is drawn with: a function of its seed alone, the same on every target and without torch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**16
"""Numbers that are drawn and transformed at once: they stay in a core's cache. A multiple of BLOCK."""
BLOCK = 8
"""Numbers of fp32 that one step of Philox's counter gives."""
SMALLEST = np.float32(2.0**-25)
"""Stands in for 0, which has no logarithm; half the smallest step is as likely."""


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


def scale_stream(seed: int, scale: int, kind: int, start: int = 0) -> np.random.Generator:
    """A stream of its own for each scale and kind of noise: a schedule that leaves a scale out changes no other's.

    Args:
        seed: Of the image.
        scale: 0-based index.
        kind: 0-based index of the scale's kinds of noise.
        start: Uniform numbers of fp32 to leave out, a multiple of BLOCK.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[start // BLOCK, 0, scale, kind]))


def gumbel_noise(seed: int, scale: int, kind: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """-log(-log u), u uniform: the code with the largest sum of logit and noise is distributed as softmax of the logits.

    HART draws 77 million numbers an image, so parts of the stream are drawn side by side, on all cores; which core draws what
    changes nothing.

    Args:
        seed: Of the image.
        scale: 0-based index.
        kind: As of `scale_stream`.
        shape: Of the result, fp32.
    """
    found = np.empty(shape, dtype=np.float32)
    flat = found.reshape(-1)

    def fill(start: int) -> None:
        part = flat[start : start + CHUNK]
        scale_stream(seed, scale, kind, start).random(out=part, dtype=np.float32)
        np.maximum(part, SMALLEST, out=part)
        for _ in range(2):
            np.negative(np.log(part, out=part), out=part)

    starts = range(0, flat.size, CHUNK)
    # NumPy lets other threads run while it draws and computes
    list(_workers().map(fill, starts) if len(starts) > 1 else map(fill, starts))
    return found


@cache
def _workers() -> ThreadPoolExecutor:
    """A thread a core that this process may use."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="noise")
