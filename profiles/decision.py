"""How an image picks its rung at run time: numbers read off an early scale, and linear models that turn them into a choice.

Two sets of features, both a function of one image alone:

- `entropy`: of the scale's entropy map, its mean and standard deviation in nats and the share of tokens below the mean.
- `detail` (SkipVAR): the sums of codes before and after the scale, decoded to two small images; how much their edges differ,
  and the share of the new one's spectrum outside a centred circle.

Plain NumPy: the torch loop and the engines must not differ in a decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ScheduleError

Array = NDArray[np.float64]
FEATURES = {"entropy": ("mean", "std", "share_below_mean"), "detail": ("edges", "high_frequencies")}
"""Names of the numbers of each set, in order."""
CIRCLE = 0.4
"""Radius of the low frequencies over half of the shorter side."""
EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearModel:
    """Standardise, multiply, take the class of the highest score: multinomial logistic regression as plain numbers.

    Attributes:
        mean: F numbers that are subtracted from the features.
        scale: F numbers > 0 that they are divided by.
        coef: A row of F weights a class.
        intercept: A number a class.
        rungs: The rung of each class; None asks the next model.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coef: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]
    rungs: tuple[str | None, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "scale", "intercept", "rungs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "coef", tuple(tuple(row) for row in self.coef))
        width, classes = len(self.mean), len(self.rungs)
        if len(self.scale) != width or any(value <= 0 for value in self.scale):
            raise ScheduleError(f"scale must be {width} numbers > 0, as many as mean, got {list(self.scale)}")
        if len(self.intercept) != classes or [len(row) for row in self.coef] != [width] * classes:
            raise ScheduleError(f"coef and intercept must have a row for each of the {classes} rungs, of {width} weights")

    def classes(self, features: Array) -> NDArray[np.int64]:
        """`[B, F]` -> `[B]`: index of the highest score; of equal ones the first."""
        z = (features - np.array(self.mean)) / np.array(self.scale)
        return np.asarray(np.argmax(z @ np.array(self.coef).T + np.array(self.intercept), axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """When and by what an image picks its rung.

    Attributes:
        scale: The scale after which it is picked.
        features: One of FEATURES.
        models: Asked in turn until one names a rung.
        view: With `detail`, the scale whose size the sums are decoded at.
    """

    scale: int
    features: str
    models: tuple[LinearModel, ...]
    view: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        if self.features not in FEATURES:
            raise ScheduleError(f"features must be one of {list(FEATURES)}, got {self.features!r}")
        if (self.features == "detail") != (self.view is not None):
            raise ScheduleError(f"view belongs to the features 'detail', got {self.features!r} and view {self.view!r}")
        wanted = len(FEATURES[self.features])
        if not self.models or any(len(model.mean) != wanted for model in self.models):
            raise ScheduleError(f"features {self.features!r} are {wanted} numbers; every model must take so many")
        if None in self.models[-1].rungs:
            raise ScheduleError("the last model must name a rung for every class: there is no other to ask")

    @property
    def rungs(self) -> frozenset[str]:
        """Names of all rungs that can be picked."""
        return frozenset(name for model in self.models for name in model.rungs if name is not None)

    def pick(self, features: Array) -> tuple[str, ...]:
        """The rung of each image, from `[B, F]`."""
        picked: list[str | None] = [None] * len(features)
        for model in self.models:
            for index, found in enumerate(model.classes(features)):
                picked[index] = picked[index] or model.rungs[found]
        return tuple(name for name in picked if name is not None)


def thresholds(feature: int, limits: tuple[float, ...], rungs: tuple[str, ...], features: str = "entropy") -> LinearModel:
    """The model that picks by one number: below the first limit the first rung, and so on.

    Class i scores i x - (limit_1 + ... + limit_i), and the highest of these lines changes at each limit.

    Args:
        feature: Index into FEATURES[features].
        limits: Ascending, one fewer than rungs.
        rungs: From low values to high.
        features: One of FEATURES.

    Raises:
        ScheduleError: The limits do not ascend, or are not one fewer than the rungs.
    """
    if len(limits) != len(rungs) - 1 or list(limits) != sorted(limits):
        raise ScheduleError(f"{len(rungs)} rungs take {len(rungs) - 1} ascending limits, got {list(limits)}")
    width = len(FEATURES[features])
    rows = [[float(i) if column == feature else 0.0 for column in range(width)] for i in range(len(rungs))]
    return LinearModel(
        mean=(0.0,) * width,
        scale=(1.0,) * width,
        coef=tuple(tuple(row) for row in rows),
        intercept=tuple(-sum(limits[:i], 0.0) for i in range(len(rungs))),
        rungs=rungs,
    )


def observe(
    decision: Decision, entropy: Callable[[], NDArray[np.floating]], views: Callable[[], tuple[NDArray[np.floating], ...]]
) -> Array:
    """The features that a decision asks for, `[B, F]`; only what they need is computed.

    Args:
        decision: Says which.
        entropy: Gives the decision scale's entropy map.
        views: Gives the small images before and after the decision scale.
    """
    return entropy_features(entropy()) if decision.features == "entropy" else detail_features(*views())


def entropy_features(entropy: NDArray[np.floating]) -> Array:
    """`[B, 1, h, w]` nats -> `[B, 3]`: mean, standard deviation, share of tokens below the mean."""
    tokens = entropy.reshape(len(entropy), -1).astype(np.float64)
    mean = tokens.mean(axis=1)
    return np.stack([mean, tokens.std(axis=1), (tokens < mean[:, None]).mean(axis=1)], axis=1)


def detail_features(old: NDArray[np.floating], new: NDArray[np.floating]) -> Array:
    """Two images `[B, 3, h, w]` in [-1, 1], before and after a scale -> `[B, 2]`.

    Edges: the mean absolute difference of their Sobel magnitudes, zeros outside the image. High frequencies: the amplitudes of
    the new one's Fourier transform outside a centred circle of int(0.4 min(h, w) / 2), over all of them. Both of the mean over
    colours, as released (fakerone-li/SkipVAR).
    """
    before, after = (image.astype(np.float64).mean(axis=1) for image in (old, new))
    edges = np.abs(_sobel(after) - _sobel(before)).mean(axis=(1, 2))
    spectrum = np.fft.fftshift(np.abs(np.fft.fft2(after)), axes=(1, 2))
    h, w = after.shape[1:]
    row, column = np.ogrid[:h, :w]
    outside = (row - h // 2) ** 2 + (column - w // 2) ** 2 > int(CIRCLE * min(h, w) / 2) ** 2
    high = (spectrum * outside).sum(axis=(1, 2)) / (spectrum.sum(axis=(1, 2)) + EPSILON)
    return np.stack([edges, high], axis=1)


def _sobel(gray: Array) -> Array:
    """Magnitude of the gradient of `[B, h, w]`, zeros outside."""
    padded = np.pad(gray, ((0, 0), (1, 1), (1, 1)))
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    x, y = down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]
    return np.asarray(np.sqrt(x**2 + y**2))
