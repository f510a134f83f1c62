"""Training of the tiny model: the teacher equals generation, targets are consistent, runs resume exactly."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.quantizer import tokenize
from toprovar.models.infinity.transformer import Infinity
from toprovar.models.infinity.vae import BsqVae
from toprovar.models.tiny.pace import Pace, Run
from toprovar.models.tiny.shards import SHARD_BYTES, load_shards, save_shards
from toprovar.models.tiny.teacher import Targets, Teacher, make_targets, token_weights
from toprovar.models.tiny.transformer_training import TextImageModel, Trainer, TrainingPlan
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import CheckpointError
from toprovar.profiles.infinity import Sampling
from toprovar.profiles.model import ModelProfile, load_profile
from toprovar.profiles.plan import ScalePlan
from torch.nn import functional as F


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    tiny = load_profile("tiny")
    small = replace(tiny.transformer, depth=2, width=64, heads=2, block_chunks=2)
    return replace(tiny, transformer=small, pixel_budget="0.06M", sampling=Sampling(cfg=1.0, tau=1.0, top_p=1.0))


def test_teacher_equals_generation(profile: ModelProfile) -> None:
    """Fed with the bits that generation drew, the teacher predicts what generation predicted."""
    torch.manual_seed(0)
    model = Infinity(profile.transformer).eval()
    text, lengths = torch.randn(2, 5, 128), torch.tensor([5, 3])
    noise = torch.rand(2, sum(h * w for h, w in profile.sizes), 16)
    logits, bits, inputs = [], [], []
    hook = model.word_embed.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))

    def keep(_: ScalePlan, out: dict[str, torch.Tensor]) -> None:
        logits.append(out["observed.logits"])
        bits.append(out["observed.bits"])

    steps = build_steps(model, profile, dense(profile), observe=True)
    generate(
        steps,
        text,
        lengths,
        noise,
        on_scale=keep,
    )
    hook.remove()
    targets = Targets(torch.cat(inputs, dim=1), torch.cat(bits, dim=1))
    teacher = Teacher(model, profile, len(profile.sizes))
    ours = teacher(text, lengths, torch.zeros(2, dtype=torch.bool), targets)
    zero, one = torch.cat(logits, dim=1).unflatten(-1, (-1, 2)).unbind(-1)
    expected = F.binary_cross_entropy_with_logits(one - zero, targets.bits, reduction="none").mean(dim=(0, 2))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_targets_without_flips_are_the_tokenisation(profile: ModelProfile) -> None:
    latent = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    targets = make_targets(latent, profile.sizes, flip=0.0)
    bits, _, _ = tokenize(latent, profile.sizes)
    # the quantiser shrinks the residual of its own sum, as generation does: the same bits
    assert torch.equal(targets.bits, torch.cat(bits, dim=1))
    assert targets.inputs.shape == (2, 520, 16)


def test_flipped_bits_change_later_labels(profile: ModelProfile) -> None:
    latent = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    clean = make_targets(latent, profile.sizes, flip=0.0)
    flipped = make_targets(latent, profile.sizes, flip=0.5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(clean.bits[:, :1], flipped.bits[:, :1])
    assert float((clean.bits != flipped.bits).float().mean()) > 0.02


def test_token_weights_favour_coarse_scales(profile: ModelProfile) -> None:
    weights = token_weights(profile.sizes)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[0] / weights[-1]) == pytest.approx(16.0)


def test_shards_round_trip_and_stay_small(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5_000_000), "b.c": torch.arange(6, dtype=torch.int64).reshape(2, 3)}
    save_shards(tmp_path, "x", tensors, {"step": 3})
    assert all(p.stat().st_size <= SHARD_BYTES + 100_000 for p in tmp_path.iterdir())
    loaded, meta = load_shards(tmp_path, "x")
    assert meta == {"step": 3}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    (tmp_path / "x-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="shard 2 of 2"):
        load_shards(tmp_path, "x")


def test_untrained_scales_start_quiet() -> None:
    """Scales train one after the other: a level embedding that is still random must not drown the stream.

    It did once: rows of norm 16, never trained, made the first images of a new scale noise.
    """
    level = TextImageModel(load_profile("tiny")).transformer.lvl_embed.weight
    assert float(level.norm(dim=1).max()) < 1


PLAN = TrainingPlan(scenes=8, coarse_batch=4, full_batch=2, coarse_share=0.5, learning_rate=1e-3)


def fresh(profile: ModelProfile, steps: int) -> Trainer:
    """A trainer on the CPU with a VAE of random weights."""
    torch.manual_seed(3)
    vae = BsqVae(replace(profile.vae, channel_mult=(1, 1, 1, 1))).eval()
    run = Run(device=torch.device("cpu"), seed=0, log=lambda _: None, compiled=False)
    return Trainer(profile, PLAN, Pace(steps=steps, seconds=1e9, batch=2), vae, run)


def test_training_lowers_the_loss_and_resumes(profile: ModelProfile, tmp_path: Path) -> None:
    """A run that is cut off goes on at its step, with its weights, moments and learning rate."""
    first = fresh(profile, steps=6)
    assert not first.train(time.monotonic() - 1, 1e9, lambda: None)
    assert first.pace.step == 1
    first.save(tmp_path)
    second = fresh(profile, steps=6)
    second.resume(tmp_path)
    assert second.pace.step == 1
    for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    for ours, theirs in zip(second.optimizers, first.optimizers, strict=True):
        assert len(ours.state) == len(theirs.state) > 0
    assert second.train(time.monotonic() + 600, 1e9, lambda: None)
    assert second.pace.step == 6
    assert any(not torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_pace_ends_by_steps_or_by_the_clock() -> None:
    by_steps, by_clock = Pace(steps=10, seconds=1e9, batch=1, step=5), Pace(steps=10**9, seconds=10, batch=1, elapsed=10)
    assert by_steps.progress() == pytest.approx(0.5)
    assert by_clock.progress() == 1.0
    assert by_steps.rate(1.0) == pytest.approx(1 - 0.48 / 0.98)
    assert by_clock.rate(1.0) == pytest.approx(0.02)
    assert Pace(steps=10, seconds=1e9, batch=1).rate(1.0) < 0.01
