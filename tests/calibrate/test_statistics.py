"""The collector's sums against plain NumPy on the same run of a small random model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_model import PROMPTS, prompt_set, small_model
from toprovar.calibrate.run import measurement_header
from toprovar.calibrate.statistics import Collector, histogram, singular_ratio, singular_values
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import MeasurementError
from toprovar.profiles.measurements import Measurements
from toprovar.profiles.plan import ScalePlan
from torch import Tensor

IMAGES = 5
Array = NDArray[np.float64]


@dataclass
class Run:
    """One batch: what the collector made of it, and what it saw."""

    measured: Measurements
    seen: list[tuple[ScalePlan, dict[str, Tensor]]]

    def entropy(self, scale: int) -> Array:
        """`[B, L, H, N]`, conditional rows."""
        return self._stack("entropy", scale)

    def update(self, scale: int) -> Array:
        """`[B, L, N]`, conditional rows."""
        return self._stack("update", scale)

    def maps(self, scale: int) -> Array:
        """`[B, L, h, w]`, head mean."""
        return np.asarray(self.entropy(scale).mean(axis=2).reshape(IMAGES, 2, *self.seen[scale][0].size))

    def _stack(self, name: str, scale: int) -> Array:
        out = self.seen[scale][1]
        return np.stack([out[f"observed.{name}.{layer}"][:IMAGES].double().numpy() for layer in range(2)], axis=1)


@lru_cache(maxsize=1)
def run() -> Run:
    """One batch of five prompts of different lengths."""
    model = small_model()
    measured = Measurements.empty(measurement_header(model, prompt_set(), 0))
    collector, seen = Collector(measured), []

    def on_scale(plan: ScalePlan, out: dict[str, Tensor]) -> None:
        seen.append((plan, out))
        collector.on_scale(plan, out)

    text = model.text.encode_prompts(PROMPTS[:IMAGES])
    tokens = sum(h * w for h, w in model.profile.sizes)
    noise = torch.from_numpy(np.stack([image_noise(seed, tokens, 16) for seed in range(IMAGES)]))
    collector.start(range(IMAGES), text.cut)
    steps = build_steps(model.transformer, model.profile, dense(model.profile), observe=True)
    generate(steps, text.features, text.lengths, noise, on_scale=on_scale)
    return Run(measured, seen)


SCALES = range(len(small_model().profile.sizes))


@pytest.mark.parametrize("scale", SCALES)
def test_mean_and_spread_of_the_entropy(scale: int) -> None:
    entropy, measured = run().entropy(scale), run().measured
    assert measured.images == IMAGES
    np.testing.assert_allclose(measured.mean_entropy(scale), entropy.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(measured.spread(scale), entropy.std(axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", SCALES)
def test_histogram_counts_every_token_once(scale: int) -> None:
    entropy, measured = run().entropy(scale), run().measured
    upper = math.log(sum(h * w for h, w in measured.sizes[: scale + 1]))
    for layer in range(2):
        # float32 may lie a rounding above ln N
        counts, _ = np.histogram(np.clip(entropy[:, layer], 0, upper), bins=64, range=(0, upper or 1.0))
        got = measured.sums[f"entropy.histogram.{scale}"][layer]
        assert got.sum() == entropy[:, layer].size
        # a value on an edge may fall on either side of it
        assert np.abs(got - counts).sum() <= 2


@pytest.mark.parametrize("scale", range(1, len(SCALES)))
def test_quantile_lies_within_a_bin_of_numpy(scale: int) -> None:
    entropy, measured = run().entropy(scale), run().measured
    width = measured.entropy_max(scale) / 64
    for q in (0.1, 0.5, 0.9):
        expected = np.quantile(entropy.swapaxes(0, 1).reshape(2, -1), q, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(measured.quantile(scale, q), expected, atol=width)


@pytest.mark.parametrize("scale", SCALES)
def test_rho_and_update(scale: int) -> None:
    maps, update, measured = run().maps(scale), run().update(scale), run().measured
    below = np.array([[(m < m.mean()).mean() for m in image] for image in maps])
    np.testing.assert_allclose(measured.rho(scale), below.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(measured.sums[f"rho.square.{scale}"], (below**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(measured.update(scale), update.mean(axis=(0, 2)), rtol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_singular_values_and_their_ratio(scale: int) -> None:
    maps, measured = run().maps(scale), run().measured
    centred = maps - maps.mean(axis=(2, 3), keepdims=True)
    values = np.stack([np.linalg.svd(m, compute_uv=False)[..., :8] for m in (maps, centred)], axis=2)
    np.testing.assert_allclose(measured.singular(scale), values.mean(axis=0), rtol=1e-9, atol=1e-12)
    if values.shape[-1] < 2:
        np.testing.assert_array_equal(measured.ratio(scale), 0)
        np.testing.assert_array_equal(measured.sums[f"ratio.count.{scale}"], 0)
        return
    np.testing.assert_array_equal(measured.sums[f"ratio.count.{scale}"], IMAGES)
    np.testing.assert_allclose(measured.ratio(scale), (values[..., 0] / values[..., 1]).mean(axis=0), rtol=1e-9)


def test_examples_are_the_first_four_head_means() -> None:
    scale, measured = len(SCALES) - 1, run().measured
    assert sorted(measured.examples) == sorted(f"entropy.{i}.{s}" for i in range(4) for s in SCALES)
    for image in range(4):
        kept = measured.examples[f"entropy.{image}.{scale}"]
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, run().maps(scale)[image], rtol=1e-6)


def test_unconditional_rows_change_nothing() -> None:
    """Dropping guidance must not change what is measured, so the other half of the rows may hold anything."""
    plan, out = run().seen[2]
    results = []
    for other in (out, {name: torch.cat([t[:IMAGES], t[IMAGES:] * 0.5]) for name, t in out.items()}):
        measured = Measurements.empty(measurement_header(small_model(), prompt_set(), 0))
        collector = Collector(measured)
        collector.start(range(IMAGES), [False] * IMAGES)
        collector.on_scale(plan, other)
        results.append(measured.sums)
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


def test_a_batch_adds_what_its_images_add_one_by_one() -> None:
    plan, out = run().seen[3]
    measured = Measurements.empty(measurement_header(small_model(), prompt_set(), 0))
    collector = Collector(measured)
    for image in range(IMAGES):
        collector.start(range(image, image + 1), [image == 1])
        observed = {name: t[image::IMAGES] for name, t in out.items() if name.startswith(("observed.e", "observed.u"))}
        collector.on_scale(plan, observed)
    for name, array in measured.sums.items():
        if name.endswith(".3") or name == "images":
            np.testing.assert_array_equal(array, run().measured.sums[name])
    assert (measured.header["prompts"], measured.header["spans"], measured.header["cut"]) == (IMAGES, [[0, IMAGES]], [1])


def test_a_value_that_is_not_finite_is_refused() -> None:
    plan, out = run().seen[1]
    broken = {name: torch.full_like(t, math.nan) if name == "observed.entropy.1" else t for name, t in out.items()}
    collector = Collector(Measurements.empty(measurement_header(small_model(), prompt_set(), 0)))
    collector.start(range(IMAGES), [False] * IMAGES)
    with pytest.raises(MeasurementError, match=r"scale 1: the model overflows.*--dtype float32"):
        collector.on_scale(plan, broken)


def test_histogram_puts_the_upper_end_and_beyond_into_the_last_bin() -> None:
    entropy = np.array([[0.0, 0.5, 1.0, 1.0 + 1e-7], [0.24, 0.25, 0.26, 0.99]])
    np.testing.assert_array_equal(histogram(entropy, 4, 1.0), [[1, 0, 1, 2], [1, 2, 0, 1]])


def test_a_flat_map_has_no_ratio_and_a_known_one_has_its_own() -> None:
    flat = np.full((3, 5), 2.0)
    known = np.diag([6.0, 3.0, 1.0]) @ np.eye(3, 5)
    ratio, counted = singular_ratio(singular_values(np.stack([flat, known])))
    np.testing.assert_array_equal(counted, [[False, False], [True, True]])
    np.testing.assert_array_equal(ratio[0], 0)
    np.testing.assert_allclose(ratio[1, 0], 2.0, rtol=1e-12)
