"""Measurements made up by formula: what a calibration of the tiny model might have found, without running it."""

from __future__ import annotations

import math

import numpy as np
from toprovar.profiles.measurements import BINS, Measurements
from toprovar.profiles.model import ModelProfile

IMAGES = 3


def synthetic_measurements(profile: ModelProfile, prompts: tuple[str, ...] = (), rho_slope: float = -0.02) -> Measurements:
    """Three images; rho is 0.5 at scale 0 and changes by `rho_slope` a scale; layer l's centred ratio is 1.2 + l / 4.

    Args:
        profile: Gives sizes, layers and heads.
        prompts: Texts of the examples; each gets maps and an image, drawn from a seeded generator.
        rho_slope: Change of rho from one scale to the next.
    """
    layers, heads = profile.transformer.depth, profile.transformer.heads
    measurements = Measurements.empty(
        {
            "format": 1,
            "profile": profile.to_dict(),
            "weights": {"transformer": "random, seed 0"},
            "prompts_sha256": "ab" * 32,
            "prompts": 0,
            "seed": 7,
            "examples": list(prompts),
            "sizes": [list(size) for size in profile.sizes],
            "layers": layers,
            "heads": heads,
            "bins": BINS,
        }
    )
    measurements.header["prompts"] = IMAGES
    rng, sums = np.random.default_rng(3), measurements.sums
    sums["images"][:] = IMAGES
    for scale, (h, w) in enumerate(profile.sizes):
        most = math.log(sum(a * b for a, b in profile.sizes[: scale + 1]))
        entropy = most * rng.uniform(0.6, 1.0, (layers, heads, h * w))
        sums[f"entropy.sum.{scale}"][:] = IMAGES * entropy
        sums[f"entropy.square.{scale}"][:] = IMAGES * entropy**2
        sums[f"entropy.histogram.{scale}"][:, int(BINS * 0.6) :] = 10
        sums[f"rho.sum.{scale}"][:] = IMAGES * (0.5 + rho_slope * scale)
        sums[f"ratio.sum.{scale}"][:, 1] = IMAGES * (1.2 + np.arange(layers) / 4)
        sums[f"ratio.count.{scale}"][:] = IMAGES
        sums[f"update.sum.{scale}"][:] = IMAGES * 0.3
        for index in range(len(prompts)):
            maps = most * rng.uniform(0.6, 1.0, (layers, h, w))
            measurements.examples[f"entropy.{index}.{scale}"] = maps.astype(np.float32)
    height, width = profile.image_size
    for index in range(len(prompts)):
        measurements.examples[f"image.{index}"] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return measurements
