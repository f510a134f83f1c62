"""From what one scale of the dense model shows to the sums of `profiles/measurements.py`, one image at a time.

Images are added one after the other in fp64, never as a batch's mean: however the prompts are batched, or wherever a run is
killed and resumed, the same numbers are added in the same order and the sums come out bit by bit the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..profiles.errors import MeasurementError
from ..profiles.measurements import EXAMPLES, SINGULAR_MAX, Measurements, join_spans
from ..profiles.plan import ScalePlan

RATIO_FLOOR = 1e-6
"""sigma2 below this share of the raw map's sigma1 is the rounding of fp32 entropies: such a map has no ratio."""


class Collector:
    """Adds observed scales to measurements, in place; holds nothing of its own that grows."""

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        self.sums = measurements.sums
        self._prompts = range(0)

    def start(self, prompts: range, cut: Sequence[bool]) -> None:
        """Begin a batch of images; `on_scale` must follow for every scale before the measurements are whole again.

        Args:
            prompts: Indices of the batch's prompts among all; of the first few the entropy maps are kept as examples.
            cut: For each, whether it was longer than the text encoder takes.
        """
        header = self.measurements.header
        header["spans"] = join_spans([*header.get("spans", []), [prompts.start, prompts.stop]])
        header["cut"] = [*header.get("cut", []), *(i for i, lost in zip(prompts, cut, strict=True) if lost)]
        header["prompts"] += len(prompts)
        self.sums["images"] += len(prompts)
        self._prompts = prompts

    def on_scale(self, plan: ScalePlan, out: Mapping[str, Tensor]) -> None:
        """Add one scale of the batch; the conditional rows only, see `profiles/measurements.py`.

        Args:
            plan: The scale; dense, so that every layer shows every token.
            out: What an observing `ScaleStep` returned: `observed.entropy.l` `[R, H, N]` nats, `observed.update.l` `[R, N]`.

        Raises:
            MeasurementError: A value is infinite or not a number.
        """
        batch, layers = len(self._prompts), range(len(plan.kept))
        entropy = _stacked([out[f"observed.entropy.{layer}"][:batch] for layer in layers])
        update = _stacked([out[f"observed.update.{layer}"][:batch] for layer in layers])
        if not (np.isfinite(entropy).all() and np.isfinite(update).all()):
            raise MeasurementError(f"scale {plan.scale}: the model overflows, its entropy is not finite; use --dtype float32")
        for image, prompt in enumerate(self._prompts):
            self._add(plan, entropy[image], update[image], prompt)

    def _add(self, plan: ScalePlan, entropy: NDArray[np.float64], update: NDArray[np.float64], prompt: int) -> None:
        """One image: entropy `[L, H, N]` nats, update `[L, N]`."""
        scale, sums = plan.scale, self.sums
        sums[f"entropy.sum.{scale}"] += entropy
        sums[f"entropy.square.{scale}"] += entropy**2
        bins = self.measurements.header["bins"]
        sums[f"entropy.histogram.{scale}"] += histogram(entropy, bins, self.measurements.entropy_max(scale))
        maps = entropy.mean(axis=1).reshape(-1, *plan.size)
        self._add_moments("rho", scale, (maps < maps.mean(axis=(1, 2), keepdims=True)).mean(axis=(1, 2)))
        self._add_moments("update", scale, update.mean(axis=1))
        singular = singular_values(maps)
        sums[f"singular.sum.{scale}"] += singular
        ratio, counted = singular_ratio(singular)
        self._add_moments("ratio", scale, ratio)
        sums[f"ratio.count.{scale}"] += counted
        if prompt < EXAMPLES:
            self.measurements.examples[f"entropy.{prompt}.{scale}"] = maps.astype(np.float32)

    def _add_moments(self, name: str, scale: int, value: NDArray[np.float64]) -> None:
        self.sums[f"{name}.sum.{scale}"] += value
        self.sums[f"{name}.square.{scale}"] += value**2


def histogram(entropy: NDArray[np.float64], bins: int, upper: float) -> NDArray[np.float64]:
    """`[L, ...]` nats -> `[L, bins]` counts; bins uniform over [0, upper], what rounding puts beyond goes to the end bins."""
    layers = entropy.shape[0]
    # the first scale sees one key: its entropy is 0 and so is the upper end
    share = entropy.reshape(layers, -1) / (upper or 1.0)
    index = np.clip((share * bins).astype(np.int64), 0, bins - 1) + bins * np.arange(layers)[:, None]
    return np.bincount(index.ravel(), minlength=layers * bins).reshape(layers, bins).astype(np.float64)


def singular_values(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[L, h, w]` -> `[L, 2, K]`: the largest singular values of each map, and of the map minus its mean."""
    pair = np.stack([maps, maps - maps.mean(axis=(1, 2), keepdims=True)], axis=1)
    return np.asarray(torch.linalg.svdvals(torch.from_numpy(pair))[..., :SINGULAR_MAX])


def singular_ratio(singular: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`[L, 2, K]` -> sigma1 / sigma2 `[L, 2]` and whether there is one; 0 where there is none."""
    if singular.shape[-1] < 2:
        return np.zeros(singular.shape[:2]), np.zeros(singular.shape[:2], dtype=np.bool_)
    first, second = singular[..., 0], singular[..., 1]
    counted = second > RATIO_FLOOR * first[:, :1]
    return np.divide(first, second, out=np.zeros_like(first), where=counted), counted


def _stacked(layers: Sequence[Tensor]) -> NDArray[np.float64]:
    """L tensors `[B, ...]` -> `[B, L, ...]` fp64 on the CPU, in one transfer."""
    return torch.stack(tuple(layers), dim=1).cpu().double().numpy()
