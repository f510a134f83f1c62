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
from toprovar.models.tiny.shards import SHARD_BYTES, load_shards, save_shards
from toprovar.models.tiny.teacher import Targets, Teacher, make_targets, token_weights
from toprovar.models.tiny.transformer_training import Trainer, TrainingPlan
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import CheckpointError
from toprovar.profiles.model import ModelProfile, Sampling, load_profile
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
    steps = build_steps(model, profile, dense(profile), observe=True)
    generate(
        steps,
        text,
        lengths,
        noise,
        on_scale=lambda _, out: (logits.append(out["observed.logits"]), bits.append(out["observed.bits"])),
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


def test_resumed_training_goes_on_where_it_stopped(profile: ModelProfile, tmp_path: Path) -> None:
    """Two steps, saved and resumed, then two more: the loss continues, and the step is the same as without the break."""
    plan = TrainingPlan(
        scenes=64, coarse_steps=4, coarse_batch=4, full_steps=0, full_batch=2, learning_rate=1e-3, seed=0, compiled=False
    )
    vae = BsqVae(replace(profile.vae, channel_mult=(1, 1, 1, 1))).eval()

    def fresh() -> Trainer:
        return Trainer(profile, plan, vae, torch.device("cpu"), lambda _: None)

    whole = fresh()
    assert whole.run(time.monotonic() + 600)
    first = fresh()
    _run_steps(first, 2)
    first.save(tmp_path)
    second = fresh()
    second.resume(tmp_path)
    assert second.step == 2
    assert second.run(time.monotonic() + 600)
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        # moments are stored in bf16
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4, msg=name)


def _run_steps(trainer: Trainer, count: int) -> None:
    """Train until `count` steps are done, as a run that is cut off there."""
    run_step = trainer._train_step

    class Stop(Exception):
        pass

    def counted(teacher: Teacher, batch: int) -> torch.Tensor:
        if trainer.step == count:
            raise Stop
        return run_step(teacher, batch)

    trainer._train_step = counted  # type: ignore[method-assign]
    with pytest.raises(Stop):
        trainer.run(time.monotonic() + 600)
