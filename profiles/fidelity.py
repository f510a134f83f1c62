"""How near one image is to another: PSNR and SSIM of 8-bit images, as every table of the project means them."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ToprovarError

PEAK = 255.0
PSNR_LIMIT_DB = 99.0
"""Of two equal images, which have no finite PSNR."""

Pixels = NDArray[Any]


def squared_error(image: Pixels, reference: Pixels) -> float:
    """Mean squared difference of two images `[h, w, 3]` of 0 to 255."""
    return float(np.mean((image.astype(np.float64) - reference) ** 2))


def psnr(error: float) -> float:
    """PSNR of a mean squared error, in dB, at most 99."""
    return min(PSNR_LIMIT_DB, 10 * math.log10(PEAK**2 / error)) if error > 0 else PSNR_LIMIT_DB


def ssim(image: Pixels, reference: Pixels) -> float:
    """SSIM of two images `[h, w, 3]` of 0 to 255: windows of 7 x 7, mean over the channels; 1 for equal images."""
    if np.array_equal(image, reference):
        return 1.0
    from skimage.metrics import structural_similarity

    return float(structural_similarity(image, reference, channel_axis=-1, data_range=PEAK))


def need_ssim() -> None:
    """Raise ToprovarError where SSIM cannot be computed here, before anything slow begins."""
    if importlib.util.find_spec("skimage") is None:
        raise ToprovarError("SSIM comes from scikit-image; run `pip install scikit-image` (or toprovar[eval])")
