"""Measuring a small model: a killed run ends with the same bytes, parts add up to the whole, foreign files are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import PROMPTS, prompt_set, small_model
from toprovar.calibrate import run as run_module
from toprovar.calibrate.run import COMPLETE, PARTIAL, measure
from toprovar.models import generate as common
from toprovar.models.generate import Conditioned, Noise, OnScale
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.step import ScaleStep
from toprovar.models.infinity.vae import to_uint8
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import MeasurementError
from toprovar.profiles.measurements import Measurements
from torch import Tensor

SEED = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    measure(small_model(), prompt_set(), SEED, out, progress=False)
    return out


def kill_after(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the run die in the middle of the next image, some of its scales already added."""
    calls = iter(range(1000))

    def dying(
        model: Conditioned, steps: Sequence[ScaleStep], text: Tensor, lengths: Tensor, noise: Noise, on_scale: OnScale
    ) -> Tensor:
        if next(calls) < images:
            return common.generate(model, steps, text, lengths, noise, on_scale=on_scale)
        common.generate(model, steps[:3], text, lengths, noise, on_scale=on_scale)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "generate", dying)


def test_a_killed_and_resumed_run_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for images in (2, 3):
        kill_after(images, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            measure(small_model(), prompt_set(), SEED, tmp_path, save_every_s=0, progress=False)
        assert (tmp_path / PARTIAL).exists()
        assert not (tmp_path / COMPLETE).exists()
    monkeypatch.undo()
    assert Measurements.load(tmp_path / PARTIAL).header["prompts"] == 5
    measure(small_model(), prompt_set(), SEED, tmp_path, progress=False)
    assert "goes on after 5 prompts" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [COMPLETE]
    assert (tmp_path / COMPLETE).read_bytes() == (whole / COMPLETE).read_bytes()


def test_every_prompt_is_drawn_with_its_own_seed_and_the_first_four_are_decoded(whole: Path) -> None:
    measured, model = Measurements.load(whole / COMPLETE), small_model()
    assert (measured.images, measured.header["prompts"]) == (len(PROMPTS), len(PROMPTS))
    assert measured.header["examples"] == list(PROMPTS[:4])
    assert measured.header["weights"] == model.digests
    assert sorted(name for name in measured.examples if name.startswith("image")) == [f"image.{i}" for i in range(4)]
    text = model.text.encode_prompts([PROMPTS[3]])
    noise = torch.from_numpy(image_noise(SEED + 3, sum(h * w for h, w in measured.sizes), 16))[None]
    steps = build_steps(model.transformer, model.profile, dense(model.profile))
    with torch.inference_mode():
        image = to_uint8(model.vae.decoder(generate(steps, text.features, text.lengths, noise)))[0].numpy()
    shown = measured.examples["image.3"]
    assert shown.shape == (*model.profile.image_size, 3)
    # the observing run computes attention by another formula: a rounding may tip a pixel
    assert np.mean(shown == image) > 0.99


def test_two_slices_merge_to_the_whole(whole: Path, tmp_path: Path) -> None:
    parts = [
        measure(small_model(), prompt_set(), SEED, tmp_path / str(start), span=(start, stop), progress=False)
        for start, stop in ((0, 2), (2, 6))
    ]
    assert [part.header["prompts"] for part in parts] == [2, 4]
    merged, expected = Measurements.merge(*parts), Measurements.load(whole / COMPLETE)
    assert merged.header == expected.header
    assert merged.examples.keys() == expected.examples.keys()
    assert all(np.array_equal(merged.examples[name], expected.examples[name]) for name in merged.examples)
    for name, array in merged.sums.items():
        if "histogram" in name or "count" in name or name == "images":
            np.testing.assert_array_equal(array, expected.sums[name])
        else:
            np.testing.assert_allclose(array, expected.sums[name], rtol=1e-12, atol=1e-12)


def test_finished_measurements_are_used_again(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "generate", None)
    again = measure(small_model(), prompt_set(), SEED, whole, progress=False)
    assert again.images == len(PROMPTS)
    assert "already measured, used again" in capsys.readouterr().err


def test_finished_measurements_of_other_prompts_are_replaced(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / COMPLETE).write_bytes((whole / COMPLETE).read_bytes())
    prompts = prompt_set(PROMPTS[:1])
    measured = measure(small_model(), prompts, SEED, tmp_path, progress=False)
    assert "of another calibration (prompts_sha256 differs" in capsys.readouterr().err
    assert Measurements.load(tmp_path / COMPLETE).header == measured.header


@pytest.mark.parametrize("key", ["profile", "weights", "prompts_sha256", "seed", "sizes", "dtype"])
def test_unfinished_measurements_of_something_else_are_refused(whole: Path, tmp_path: Path, key: str) -> None:
    measured = Measurements.load(whole / COMPLETE)
    if key == "sizes":
        empty = Measurements.empty({**measured.header, "sizes": measured.header["sizes"][:-1], "spans": [[0, 1]]})
        empty.save(tmp_path / PARTIAL)
    else:
        replace(measured, header={**measured.header, key: "other"}).save(tmp_path / PARTIAL)
    before = (tmp_path / PARTIAL).read_bytes()
    with pytest.raises(MeasurementError, match=f"unfinished measurements of something else: {key} differs.*another --out"):
        measure(small_model(), prompt_set(), SEED, tmp_path, progress=False)
    assert (tmp_path / PARTIAL).read_bytes() == before


def test_unfinished_measurements_of_another_slice_are_refused(whole: Path, tmp_path: Path) -> None:
    Measurements.load(whole / COMPLETE).save(tmp_path / PARTIAL)
    with pytest.raises(MeasurementError, match="span differs"):
        measure(small_model(), prompt_set(), SEED, tmp_path, span=(2, 4), progress=False)
    with pytest.raises(MeasurementError, match="span 4 to 7 is empty or outside the 6 prompts"):
        measure(small_model(), prompt_set(), SEED, tmp_path, span=(4, 7), progress=False)


def test_memory_does_not_grow_with_the_prompts(whole: Path, tmp_path: Path) -> None:
    """Beyond the four examples a prompt adds to sums only."""
    five = measure(small_model(), prompt_set(), SEED, tmp_path, span=(0, 5), progress=False)
    six = Measurements.load(whole / COMPLETE)
    sizes = [sum(a.nbytes for a in (*m.sums.values(), *m.examples.values())) for m in (five, six)]
    assert sizes[0] == sizes[1]
