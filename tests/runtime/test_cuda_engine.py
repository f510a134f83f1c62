"""Bundles of the target `cuda`: what they hold and refuse; on a GPU the images, their memory and their neighbours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_model import PROMPTS, everything_at_once, small_model, small_profile
from small_rungs import text_and_noise, with_rungs
from toprovar.benchmarks.latency.gate import worst_ratio
from toprovar.compile.cli import main as build_engine
from toprovar.compile.cuda_bundle import build_cuda_bundle
from toprovar.models.family import build_steps, noise_of, stored_modules
from toprovar.models.generate import generate
from toprovar.models.infinity.vae import to_uint8
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import BundleError
from toprovar.profiles.manifest import WEIGHTS
from toprovar.profiles.model import TextConfig
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.cuda_engine import CudaEngine
from toprovar.runtime.cuda_program import text_capacity
from toprovar.runtime.machine import Machine

SEEDS = (3, 5, 8, 13, 21, 34, 55, 89)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def build(folder: Path, schedule: Schedule, model: LoadedModel | None = None) -> Path:
    build_cuda_bundle(model or small_model(), schedule, folder, {"kind": "words"}, lambda _: None)
    return folder


def features(batch: int) -> tuple[np.ndarray, np.ndarray]:
    found = small_model().text.encode_prompts([PROMPTS[i % len(PROMPTS)] for i in range(batch)])
    return found.features.numpy(), found.lengths.numpy()


def expected_rgb(schedule: Schedule, batch: int) -> np.ndarray:
    """The images of the torch module on the CPU."""
    model, profile = small_model(), small_profile()
    text, lengths = (torch.from_numpy(part) for part in features(batch))
    noise = [
        {name: torch.from_numpy(value) for name, value in noise_of(profile, SEEDS[:batch], scale).items()}
        for scale in range(len(profile.sizes))
    ]
    with torch.inference_mode():
        summed = generate(model.transformer, build_steps(model, schedule), text, lengths, noise)
        return to_uint8(model.decoder(summed)).numpy()


def test_a_bundle_holds_every_weight_once(tmp_path: Path) -> None:
    folder = build(tmp_path / "engine", everything_at_once())
    tensors = load_file(folder / WEIGHTS)
    for prefix, module in stored_modules(small_model()).items():
        for name, value in module.state_dict().items():
            assert torch.equal(tensors.pop(f"{prefix}.{name}"), value)
    assert {name.partition(".")[0] for name in tensors} == {"text_encoder"}
    assert (build(tmp_path / "again", everything_at_once()) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_machine_without_a_gpu_is_told_what_is_missing(tmp_path: Path) -> None:
    folder = build(tmp_path / "engine", dense(small_profile()))
    with pytest.raises(BundleError, match="no NVIDIA driver answers"):
        CudaEngine(folder, Machine())
    with pytest.raises(BundleError, match="torch is a build without CUDA"):
        CudaEngine(folder, Machine(driver="580.1"))
    with pytest.raises(BundleError, match="torch sees no GPU"):
        CudaEngine(folder, Machine(driver="580.1", cuda="13.0"))


def test_text_capacities() -> None:
    assert [text_capacity(n, 512) for n in (1, 64, 65, 200, 512)] == [64, 64, 128, 256, 512]
    assert [text_capacity(n, 20) for n in (1, 20)] == [20, 20]


@gpu
@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("policy", ["dense", "skip-2", "noguide-3", "everything"])
def test_images_equal_the_torch_modules(policy: str, batch: int, tmp_path: Path) -> None:
    """fp32: a pixel may fall to the other side of a whole number, no more."""
    schedule = everything_at_once() if policy == "everything" else baseline(policy, small_profile())
    engine = CudaEngine(build(tmp_path / "engine", schedule))
    found = engine.generate(*features(batch), SEEDS[:batch]).uint8()
    expected = expected_rgb(schedule, batch)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@gpu
def test_one_seed_gives_one_image_whatever_ran_before_and_beside(tmp_path: Path) -> None:
    engine = CudaEngine(build(tmp_path / "engine", everything_at_once()))
    text, lengths = features(2)
    first = engine.generate(text, lengths, SEEDS[:2]).uint8().copy()
    engine.generate(text[::-1].copy(), lengths[::-1].copy(), SEEDS[4:6])
    engine.generate(text[:1], lengths[:1], SEEDS[:1])
    mixed = engine.generate(text, lengths, (SEEDS[0], SEEDS[7])).uint8()
    assert np.array_equal(mixed[0], first[0])
    assert np.array_equal(engine.generate(text, lengths, SEEDS[:2]).uint8(), first)


@gpu
def test_a_replay_allocates_nothing(tmp_path: Path) -> None:
    engine = CudaEngine(build(tmp_path / "engine", everything_at_once()))
    request = (*features(1), SEEDS[:1])
    engine.generate(*request)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    engine.generate(*request)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@gpu
def test_a_load_and_an_image_leave_torchs_compiler_alone(tmp_path: Path) -> None:
    """Importing it takes seconds of every load."""
    folder = build(tmp_path / "engine", everything_at_once())
    request = ["--engine", str(folder), "--prompt", PROMPTS[0], "--output", str(tmp_path / "images")]
    code = "import sys; from toprovar.runtime.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "print(*({'sympy', 'torch._dynamo'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "", done.stdout


@gpu
def test_prompts_of_any_length_run(tmp_path: Path) -> None:
    """A longer capacity changes nothing: the loop over text ends at the prompt's own length."""
    profile = replace(small_profile(), text=TextConfig(kind="t5", max_length=512))
    engine = CudaEngine(build(tmp_path / "engine", dense(profile), replace(small_model(), profile=profile)))
    text, lengths = features(1)
    short = engine.generate(text, lengths, SEEDS[:1]).uint8().copy()
    long = engine.generate(np.pad(text, ((0, 0), (0, 200 - text.shape[1]), (0, 0))), lengths, SEEDS[:1]).uint8()
    assert np.abs(short.astype(int) - long.astype(int)).max() <= 1


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_exact_as_the_eager_module(dtype: torch.dtype) -> None:
    from toprovar.profiles.model import load_profile

    model = load_model(load_profile("tiny"), WeightOptions(), dtype, "cuda")
    assert worst_ratio(model) < 2.0


@gpu
def test_words_run_on_the_gpu(tmp_path: Path) -> None:
    engine = CudaEngine(build(tmp_path / "engine", dense(small_profile())))
    ids = np.array([[1, 2, 3]])
    with torch.inference_mode():
        expected = small_model().text.encoder(torch.from_numpy(ids))  # type: ignore[attr-defined]
    np.testing.assert_allclose(engine.words(ids), expected.numpy(), rtol=0, atol=1e-4)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--target", "cuda", "--out", str(tmp_path / "engine")]
    assert build_engine(["--policy", "skipvar", "--dry-run", *out]) == 0
    assert "one up to the decision and" in capsys.readouterr().out
    assert build_engine(["--policy", "skip-1", "--dry-run", *out]) == 0
    assert "captured where it runs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@gpu
@pytest.mark.parametrize("kind", ["entropy", "detail"])
def test_images_end_as_the_rungs_they_pick(kind: str, tmp_path: Path) -> None:
    """A batch that splits three ways equals torch, and each image equals itself beside others that pick otherwise."""
    schedule, images = with_rungs(kind), [0, 1, 2, 3]
    engine = CudaEngine(build(tmp_path / "engine", schedule))
    text, lengths, noise = text_and_noise(small_profile(), images)
    summed, picked = generate_rungs(build_rungs(small_model(), schedule), text, lengths, noise)
    with torch.inference_mode():
        expected = to_uint8(small_model().decoder(summed)).numpy()
    found = engine.generate(text.numpy(), lengths.numpy(), images)
    assert found.rungs == picked
    assert len(set(picked)) == 3
    assert np.abs(found.uint8().astype(int) - expected.astype(int)).max() <= 1
    turned = engine.generate(text.numpy()[::-1].copy(), lengths.numpy()[::-1].copy(), images[::-1])
    assert turned.rungs == picked[::-1]
    assert np.array_equal(turned.uint8()[::-1], found.uint8())
    for image in images:
        alone = engine.generate(text.numpy()[[image]], lengths.numpy()[[image]], [image])
        assert alone.rungs == picked[image : image + 1]
        assert np.abs(alone.uint8()[0].astype(int) - expected[image].astype(int)).max() <= 1


@gpu
@pytest.mark.parametrize("batch", [1, 4])
def test_skipvar_runs_with_rungs_that_end_at_the_decision(batch: int, tmp_path: Path) -> None:
    schedule, images = baseline("skipvar", small_profile()), list(range(batch))
    engine = CudaEngine(build(tmp_path / "engine", schedule))
    text, lengths, noise = text_and_noise(small_profile(), images)
    summed, picked = generate_rungs(build_rungs(small_model(), schedule), text, lengths, noise)
    with torch.inference_mode():
        expected = to_uint8(small_model().decoder(summed)).numpy()
    found = engine.generate(text.numpy(), lengths.numpy(), images)
    assert found.rungs == picked
    assert np.abs(found.uint8().astype(int) - expected.astype(int)).max() <= 1
