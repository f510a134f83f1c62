"""Measurements: what the sums mean, that they add up, and that files survive the round trip or are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toprovar.profiles.errors import MeasurementError
from toprovar.profiles.measurements import Measurements, join_spans, sum_shapes

SIZES = [[1, 1], [2, 3], [5, 4]]
LAYERS, HEADS, BINS = 3, 2, 8


def header(**changes: Any) -> dict[str, Any]:
    plain = {
        "format": 1,
        "profile": {"name": "small"},
        "weights": {"transformer": "abc"},
        "prompts_sha256": "0" * 64,
        "prompts": 0,
        "seed": 0,
        "examples": ["a red star"],
        "sizes": SIZES,
        "layers": LAYERS,
        "heads": HEADS,
        "bins": BINS,
        "spans": [],
    }
    return {**plain, **changes}


def filled(draw: int, images: int = 3, **changes: Any) -> Measurements:
    """Random whole sums: fp64 adds them exactly, whatever the order."""
    generator = np.random.default_rng(draw)
    empty = Measurements.empty(header(**changes))
    sums = {name: generator.integers(0, 50, array.shape).astype(np.float64) for name, array in empty.sums.items()}
    sums["images"][:] = images
    return replace(empty, header={**empty.header, "prompts": images}, sums=sums)


def same(one: Measurements, other: Measurements) -> bool:
    return (
        one.header == other.header
        and one.sums.keys() == other.sums.keys()
        and one.examples.keys() == other.examples.keys()
        and all(np.array_equal(one.sums[name], other.sums[name]) for name in one.sums)
        and all(np.array_equal(one.examples[name], other.examples[name]) for name in one.examples)
    )


def test_round_trip_keeps_every_bit_and_the_same_bytes(tmp_path: Path) -> None:
    measured = filled(1)
    measured.sums["rho.sum.1"][:] = 1 / 3
    measured.examples["entropy.0.1"] = np.full((LAYERS, 2, 3), 0.1, dtype=np.float32)
    measured.examples["image.0"] = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    measured.save(tmp_path / "one.safetensors")
    loaded = Measurements.load(tmp_path / "one.safetensors")
    assert same(loaded, measured)
    assert loaded.examples["image.0"].dtype == np.uint8
    loaded.sums["images"] += 1  # a resumed run adds to what it loaded
    Measurements.load(tmp_path / "one.safetensors").save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_sums_have_the_documented_shapes() -> None:
    shapes = sum_shapes(header())
    assert shapes["images"] == (1,)
    assert shapes["entropy.sum.2"] == shapes["entropy.square.2"] == (LAYERS, HEADS, 20)
    assert shapes["entropy.histogram.0"] == (LAYERS, BINS)
    assert (shapes["singular.sum.0"], shapes["singular.sum.2"]) == ((LAYERS, 2, 1), (LAYERS, 2, 4))
    assert shapes["ratio.count.1"] == (LAYERS, 2)
    assert shapes["rho.square.1"] == shapes["update.sum.1"] == (LAYERS,)


def test_merge_adds_sums_and_unites_examples() -> None:
    one, two = filled(1, images=3, spans=[[0, 3]], cut=[2]), filled(2, images=2, spans=[[3, 5]])
    one.examples["image.0"] = np.zeros((1, 1, 3), dtype=np.uint8)
    two.examples["image.3"] = np.ones((1, 1, 3), dtype=np.uint8)
    merged = Measurements.merge(two, one)
    assert (merged.images, merged.header["prompts"], merged.header["spans"], merged.header["cut"]) == (5, 5, [[0, 5]], [2])
    assert sorted(merged.examples) == ["image.0", "image.3"]
    for name, array in merged.sums.items():
        np.testing.assert_array_equal(array, one.sums[name] + two.sums[name])


@pytest.mark.parametrize(
    ("key", "value"), [("weights", {"transformer": "xyz"}), ("seed", 7), ("prompts_sha256", "1" * 64), ("dtype", "float16")]
)
def test_merge_names_the_differing_key(key: str, value: Any) -> None:
    with pytest.raises(MeasurementError, match=f"cannot be merged: {key} differs"):
        Measurements.merge(filled(1), filled(1, **{key: value}))


def test_merge_refuses_a_prompt_counted_twice() -> None:
    with pytest.raises(MeasurementError, match="prompt 2 was recorded twice"):
        Measurements.merge(filled(1, spans=[[0, 3]]), filled(2, spans=[[2, 4]]))


def test_spans_join_where_they_touch() -> None:
    assert join_spans([[4, 6], [0, 2], [2, 3]]) == [[0, 3], [4, 6]]


def test_mean_spread_and_ratio_are_those_of_the_images() -> None:
    generator = np.random.default_rng(0)
    images = generator.random((5, LAYERS, HEADS, 6))
    ratios, counted = generator.random((5, LAYERS, 2)), generator.random((5, LAYERS, 2)) < 0.5
    counted[:, 0, 0] = False
    measured = filled(0, images=5)
    measured.sums["entropy.sum.1"][:], measured.sums["entropy.square.1"][:] = images.sum(0), (images**2).sum(0)
    measured.sums["ratio.sum.1"][:], measured.sums["ratio.count.1"][:] = (ratios * counted).sum(0), counted.sum(0)
    np.testing.assert_allclose(measured.mean_entropy(1), images.mean(0), rtol=1e-13)
    np.testing.assert_allclose(measured.spread(1), images.std(0), rtol=1e-12)
    expected = np.ma.masked_array(ratios, ~counted).mean(0).filled(0.0)
    np.testing.assert_allclose(measured.ratio(1), expected, rtol=1e-13)
    assert measured.ratio(1)[0, 0] == 0


def test_spread_of_a_constant_is_zero() -> None:
    measured = filled(0, images=3)
    measured.sums["entropy.sum.1"][:], measured.sums["entropy.square.1"][:] = 3 * 0.1, 3 * 0.1**2 - 1e-17
    assert np.all(measured.spread(1) < 1e-8)


def test_quantile_of_a_flat_histogram_is_linear() -> None:
    measured = filled(0, images=4)
    measured.sums["entropy.histogram.1"][:] = 4 * HEADS * 6 / BINS
    for q in (0.0, 0.3, 0.5, 1.0):
        np.testing.assert_allclose(measured.quantile(1, q), q * np.log(7), rtol=1e-13)


def test_quantile_steps_over_empty_bins() -> None:
    measured = filled(0, images=1)
    counts = measured.sums["entropy.histogram.1"]
    counts[:] = 0
    counts[:, 2], counts[:, 6] = 6, 6
    width = np.log(7) / BINS
    np.testing.assert_allclose(measured.quantile(1, 0.0), 2 * width)
    np.testing.assert_allclose(measured.quantile(1, 0.5), 3 * width)
    np.testing.assert_allclose(measured.quantile(1, 0.75), 6.5 * width)
    np.testing.assert_array_equal(measured.quantile(0, 0.5), 0)  # one key: entropy 0
    with pytest.raises(MeasurementError, match=r"quantile must be 0 to 1, got 1\.5"):
        measured.quantile(1, 1.5)


def test_no_image_says_so() -> None:
    with pytest.raises(MeasurementError, match="hold no image"):
        Measurements.empty(header()).rho(1)


def test_sums_that_do_not_fit_the_header_are_named() -> None:
    measured = filled(1)
    with pytest.raises(MeasurementError, match=r"rho\.sum\.1 is float64 \(2,\), expected float64 \(3,\)"):
        replace(measured, sums={**measured.sums, "rho.sum.1": np.zeros(2)})
    with pytest.raises(MeasurementError, match=r"missing or unknown: \['rho.sum.9'\]"):
        replace(measured, sums={**measured.sums, "rho.sum.9": np.zeros(3)})
    with pytest.raises(MeasurementError, match=r"header lacks \['seed'\]"):
        replace(measured, header={key: value for key, value in measured.header.items() if key != "seed"})
    with pytest.raises(MeasurementError, match="format is 2, this version reads format 1"):
        replace(measured, header={**measured.header, "format": 2})


def test_files_that_are_no_measurements_are_refused_in_one_line(tmp_path: Path) -> None:
    from safetensors.numpy import save

    good = tmp_path / "good.safetensors"
    filled(1).save(good)
    cases = {
        "cut": good.read_bytes()[:-100],
        "text": b"hello",
        "bare": save({"a": np.zeros(1)}),
        "list": save({"a": np.zeros(1)}, metadata={"header": "[]"}),
        "json": save({"a": np.zeros(1)}, metadata={"header": "{"}),
        "sizes": save({"a": np.zeros(1)}, metadata={"header": json.dumps(header(sizes=[3]))}),
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(MeasurementError, match=f"{name}.safetensors: ") as caught:
            Measurements.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(MeasurementError, match="no such file"):
        Measurements.load(tmp_path / "none.safetensors")


def test_module_needs_numpy_and_yaml_only() -> None:
    code = "import sys, toprovar.profiles.measurements; print(sorted({'torch', 'safetensors', 'tqdm'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
