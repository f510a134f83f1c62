"""What calibration measured of a dense model: sums that add up, so that any split of the prompts gives the same answer.

Every statistic is kept as a sum over images (or a count), never as a mean: two files merge by plain addition, a killed run
goes on where it stopped, and memory does not grow with the number of prompts. Only conditional rows are recorded: dropping
guidance must not change what the statistics mean, and a schedule's entropy map is made of these rows alone.

Sums over images, all fp64 (L layers, H heads, N tokens of scale s, K = min(8, h, w)):

    images                        [1]        images recorded
    entropy.sum.s, .square.s      [L, H, N]  attention entropy of a token, nats
    entropy.histogram.s           [L, bins]  counts over heads, tokens and images, bins uniform over [0, ln(visible keys)]
    rho.sum.s, .square.s          [L]        share of tokens below the mean of the head-mean map
    singular.sum.s                [L, 2, K]  singular values of the head-mean map: as it is, and minus its mean
    ratio.sum.s, .square.s        [L, 2]     sigma1 / sigma2, over the images that have one
    ratio.count.s                 [L, 2]     how many have one
    update.sum.s, .square.s       [L]        mean over tokens of |layer's update| / |layer's input|

Of the first prompts the maps themselves: `entropy.i.s` fp32 `[L, h, w]`, head mean, and `image.i` uint8 `[height, width, 3]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MeasurementError
from .geometry import tokens_through
from .strict import write_atomic

FORMAT = 1
BINS = 64
SINGULAR_MAX = 8
EXAMPLES = 4
Shape = tuple[int, ...]

_KEYS = ("profile", "weights", "prompts_sha256", "prompts", "seed", "examples", "sizes", "layers", "heads", "bins")
_OWN_KEYS = ("prompts", "examples", "spans", "cut")
_EXAMPLE_PREFIX = "example."


@dataclass(frozen=True)
class Measurements:
    """Sums and examples of one calibration, or of a part of one.

    Attributes:
        header: What was measured, as plain JSON: `format` (1), `profile` (mapping of the model profile), `weights` (digests),
            `prompts_sha256`, `prompts` (recorded so far), `seed`, `examples` (the first prompts' texts), `sizes`, `layers`,
            `heads`, `bins`; optional `spans` ([start, stop) ranges of recorded prompts) and `cut` (indices of prompts too long
            for the text encoder); any other key must agree in a merge.
        sums: As in the module's text.
        examples: As in the module's text; holds only those prompts' arrays that were recorded.
    """

    header: dict[str, Any]
    sums: dict[str, NDArray[np.float64]]
    examples: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        if self.header.get("format") != FORMAT:
            raise MeasurementError(f"format is {self.header.get('format')!r}, this version reads format {FORMAT}")
        missing = [key for key in _KEYS if key not in self.header]
        if missing:
            raise MeasurementError(f"header lacks {missing}; measure again with `calibrate`")
        expected = sum_shapes(self.header)
        if set(expected) != set(self.sums):
            odd = sorted(set(expected) ^ set(self.sums))
            raise MeasurementError(f"sums do not match the header, missing or unknown: {odd[:4]}; measure again")
        for name, shape in expected.items():
            array = self.sums[name]
            if array.shape != shape or array.dtype != np.float64:
                raise MeasurementError(f"{name} is {array.dtype} {array.shape}, expected float64 {shape}; measure again")

    @classmethod
    def empty(cls, header: dict[str, Any]) -> Measurements:
        """Nothing recorded yet; the header's `prompts` starts at 0."""
        header = {**header, "prompts": 0}
        return cls(header, {name: np.zeros(shape) for name, shape in sum_shapes(header).items()}, {})

    @classmethod
    def merge(cls, *parts: Measurements) -> Measurements:
        """Add up parts of one calibration, in the given order.

        Raises:
            MeasurementError: There are no parts, they measured different things, or the same prompts twice.
        """
        if not parts:
            raise MeasurementError("nothing to merge: give at least one measurements file")
        first = parts[0].header
        for part in parts[1:]:
            differing = first_difference(first, part.header)
            if differing:
                raise MeasurementError(f"measurements cannot be merged: {differing}; merge parts of one calibration only")
        texts = max((part.header["examples"] for part in parts), key=len)
        header = {**first, "prompts": sum(part.header["prompts"] for part in parts), "examples": texts}
        if all("spans" in part.header for part in parts):
            header["spans"] = join_spans([span for part in parts for span in part.header["spans"]])
        if any("cut" in part.header for part in parts):
            header["cut"] = sorted(index for part in parts for index in part.header.get("cut", ()))
        sums = {name: np.sum([part.sums[name] for part in parts], axis=0) for name in parts[0].sums}
        return cls(header, sums, {name: array for part in parts for name, array in part.examples.items()})

    @property
    def images(self) -> int:
        """Images recorded.

        Raises:
            MeasurementError: None, so that nothing can be said of the model.
        """
        count = int(self.sums["images"][0])
        if count < 1:
            raise MeasurementError("the measurements hold no image; run `calibrate` with at least one prompt")
        return count

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) in tokens, coarse to fine."""
        return tuple((h, w) for h, w in self.header["sizes"])

    def entropy_max(self, scale: int) -> float:
        """ln of the visible keys: the entropy of uniform attention at this scale, nats."""
        return entropy_bound(self.sizes, scale)

    def mean_entropy(self, scale: int) -> NDArray[np.float64]:
        """`[L, H, N]` nats, mean over images."""
        return self._mean("entropy", scale)

    def spread(self, scale: int) -> NDArray[np.float64]:
        """`[L, H, N]` nats: standard deviation of a token's entropy over images."""
        mean = self._mean("entropy", scale)
        square = self.sums[f"entropy.square.{scale}"] / self.images
        # rounding can leave a constant's variance just below 0
        return np.asarray(np.sqrt(np.maximum(square - mean**2, 0.0)))

    def quantile(self, scale: int, q: float) -> NDArray[np.float64]:
        """`[L]` nats: the entropy that a share q of all heads' tokens stay below, to a bin's width and linear within it."""
        if not 0.0 <= q <= 1.0:
            raise MeasurementError(f"quantile must be 0 to 1, got {q!r}")
        counts = self.sums[f"entropy.histogram.{scale}"]
        running = counts.cumsum(axis=1)
        target = np.full((len(counts), 1), q * self.images * self.header["heads"] * math.prod(self.sizes[scale]))
        # an empty bin reaches no share: take the first that holds something
        picked = np.argmax((running >= target) & (counts > 0), axis=1)[:, None]
        inside = np.take_along_axis(counts, picked, axis=1)
        below = np.take_along_axis(running, picked, axis=1) - inside
        fraction = (target - below) / np.maximum(inside, 1.0)
        width = self.entropy_max(scale) / counts.shape[1]
        return np.asarray(((picked + fraction) * width)[:, 0])

    def rho(self, scale: int) -> NDArray[np.float64]:
        """`[L]`: share of tokens below the mean of their map, mean over images."""
        return self._mean("rho", scale)

    def singular(self, scale: int) -> NDArray[np.float64]:
        """`[L, 2, K]` nats: singular values of the map as it is and minus its mean, mean over images."""
        return self._mean("singular", scale)

    def ratio(self, scale: int) -> NDArray[np.float64]:
        """`[L, 2]`: sigma1 / sigma2 of the map as it is and minus its mean, mean over images; 0 where no image has one."""
        return np.asarray(self.sums[f"ratio.sum.{scale}"] / np.maximum(self.sums[f"ratio.count.{scale}"], 1.0))

    def update(self, scale: int) -> NDArray[np.float64]:
        """`[L]`: norm of the layer's update over that of its input, mean over tokens and images."""
        return self._mean("update", scale)

    def _mean(self, name: str, scale: int) -> NDArray[np.float64]:
        return np.asarray(self.sums[f"{name}.sum.{scale}"] / self.images)

    def save(self, path: Path) -> None:
        """Write safetensors, atomically; the same measurements give the same bytes."""
        from safetensors.numpy import save

        arrays = {**self.sums, **{_EXAMPLE_PREFIX + name: array for name, array in self.examples.items()}}
        arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
        # one metadata key: safetensors keeps several in a random order
        write_atomic(path, save(arrays, metadata={"header": json.dumps(self.header, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> Measurements:
        """Read a file that `save` wrote.

        Raises:
            MeasurementError: It is missing, damaged, or something else.
        """
        header, arrays = _read(path)
        sums = {name: array for name, array in arrays.items() if not name.startswith(_EXAMPLE_PREFIX)}
        examples = {name[len(_EXAMPLE_PREFIX) :]: array for name, array in arrays.items() if name not in sums}
        try:
            return cls(header, sums, examples)
        except MeasurementError as err:
            raise MeasurementError(f"{path}: {err}") from err
        except (KeyError, TypeError, ValueError) as err:
            raise MeasurementError(f"{path}: its header is damaged ({err}); delete it and measure again") from err


def sum_shapes(header: dict[str, Any]) -> dict[str, Shape]:
    """Shape of every sum, by name, from a header's sizes, layers, heads and bins."""
    layers, heads, bins = int(header["layers"]), int(header["heads"]), int(header["bins"])
    shapes: dict[str, Shape] = {"images": (1,)}
    for scale, (h, w) in enumerate(header["sizes"]):
        of: Callable[[str], str] = f"{{}}.{scale}".format
        shapes |= {of(name): (layers, heads, h * w) for name in ("entropy.sum", "entropy.square")}
        shapes[of("entropy.histogram")] = (layers, bins)
        shapes[of("singular.sum")] = (layers, 2, min(SINGULAR_MAX, h, w))
        shapes |= {of(name): (layers, 2) for name in ("ratio.sum", "ratio.square", "ratio.count")}
        shapes |= {of(name): (layers,) for name in ("rho.sum", "rho.square", "update.sum", "update.square")}
    return shapes


def entropy_bound(sizes: tuple[tuple[int, int], ...], scale: int) -> float:
    """ln of the keys that a token of this scale sees, its own scale's included; nats."""
    return math.log(tokens_through(sizes, scale))


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say in which key two headers tell of different calibrations; empty where they tell of the same one."""
    for key in sorted(set(one) | set(other)):
        if key not in _OWN_KEYS and one.get(key) != other.get(key):
            return f"{key} differs ({str(one.get(key))[:60]} here, {str(other.get(key))[:60]} there)"
    return ""


def join_spans(spans: list[list[int]]) -> list[list[int]]:
    """Sorted [start, stop) ranges, neighbours joined.

    Raises:
        MeasurementError: Two of them overlap.
    """
    joined: list[list[int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            raise MeasurementError(f"measurements cannot be merged: prompt {start} was recorded twice; leave one part out")
        if joined and start == joined[-1][1]:
            joined[-1] = [joined[-1][0], stop]
        else:
            joined.append([start, stop])
    return joined


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MeasurementError(f"{path}: no such file; `calibrate` writes one")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["header"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError as err:
        raise MeasurementError(f"{path}: holds no calibration header; it is not a measurements file") from err
    except (SafetensorError, OSError, ValueError) as err:
        raise MeasurementError(f"{path}: cannot be read as measurements ({err}); delete it and measure again") from err
    if not isinstance(header, dict):
        raise MeasurementError(f"{path}: its header is no JSON object; delete it and measure again")
    return header, arrays
