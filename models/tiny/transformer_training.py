"""The training loop of the tiny transformer and its text encoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...profiles.model import ModelProfile
from ..infinity.parts import infinity_parts
from ..infinity.transformer import Infinity
from ..infinity.vae import BsqVae
from .pace import Pace, Run
from .render import to_tensors
from .scenes import caption_tokens, sample_scenes
from .shards import has_shards, load_shards, save_shards
from .teacher import Teacher, block_forward, flex_attention_on, make_targets
from .text_encoder import WordEncoder
from .vae_training import encode_scenes

COARSE_SCALES = 7
FLIP = 0.25
DROP_CAPTION = 0.1
EMA_DECAY = 0.998
CAPTIONS = 4
LOG_EVERY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What the transformer trains on; how long is its `Pace`."""

    scenes: int
    coarse_batch: int
    full_batch: int
    coarse_share: float
    learning_rate: float


class TextImageModel(nn.Module):
    """What is trained together, under one state dict."""

    def __init__(self, profile: ModelProfile) -> None:
        super().__init__()
        self.transformer = Infinity(infinity_parts(profile)[0])
        self.text_encoder = WordEncoder(width=profile.transformer.text_channels)
        # residual branches start near zero: gammas small, as adaptive norms like it
        with torch.no_grad():
            for block in self.transformer.blocks():
                block.ada_gss[:, :, :2].mul_(0.1)
            for name in ("head", "shared_ada_lin.1", "head_nm.ada_lin.1"):
                self.transformer.get_parameter(f"{name}.weight").mul_(0.1)
            # scales train one after the other: a new one starts from a level like the others'
            self.transformer.lvl_embed.weight.mul_(0.02)


class Trainer:
    """Holds the state between runs: weights, running average, optimisers, step."""

    def __init__(self, profile: ModelProfile, plan: TrainingPlan, pace: Pace, vae: BsqVae, run: Run) -> None:
        self.profile, self.plan, self.pace, self.vae, self.run = profile, plan, pace, vae, run
        torch.manual_seed(run.seed)
        self.model = TextImageModel(profile).to(run.device)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        matrices, others = _groups(self.model)
        rate = plan.learning_rate
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=run.cuda),
        ]

    def train(self, deadline: float, every_seconds: float, save: Callable[[], None]) -> bool:
        """Train to the end of the pace or until `time.monotonic()` passes the deadline; True where the pace ended.

        `save` is called every `every_seconds`.
        """
        run, device = self.run, self.run.device
        scenes = sample_scenes(self.plan.scenes, np.random.default_rng(run.seed))
        draws = [caption_tokens(scenes, np.random.default_rng([run.seed, i])) for i in range(CAPTIONS)]
        self.captions = torch.from_numpy(np.stack(draws, axis=1)).to(device)
        self.latents = encode_scenes(self.vae, to_tensors(scenes, device), run)
        run.log(f"encoded {len(self.latents)} scenes, std {self.latents[:4096].float().std().item():.3f}")
        self.pace.start()
        saved = time.monotonic()
        while self.pace.progress() < 1:
            coarse = self.pace.progress() < self.plan.coarse_share
            teacher = self._teacher(COARSE_SCALES if coarse else len(self.profile.sizes))
            batch = self.plan.coarse_batch if coarse else self.plan.full_batch
            while self.pace.progress() < (self.plan.coarse_share if coarse else 1):
                self._train_step(teacher, batch)
                if time.monotonic() > deadline:
                    return False
                if time.monotonic() - saved > every_seconds:
                    save()
                    saved = time.monotonic()
        return True

    def _teacher(self, scales: int) -> Teacher:
        sizes = self.profile.sizes[:scales]
        attention = flex_attention_on(sizes, self.run.device) if self.run.cuda else None
        teacher = Teacher(self.model.transformer, self.profile, scales, attention).to(self.run.device)
        teacher.block = self.run.compile(block_forward)
        return teacher

    def _train_step(self, teacher: Teacher, batch: int) -> None:
        pace, device = self.pace, self.run.device
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = pace.rate(self.plan.learning_rate)
        # a fresh generator a step: a resumed run draws what an uninterrupted one would
        generator = torch.Generator(device).manual_seed(self.run.seed * 1_000_003 + pace.step)
        pick = torch.randint(len(self.latents), (batch,), device=device, generator=generator)
        variant = torch.randint(CAPTIONS, (batch,), device=device, generator=generator)
        ids = self.captions[pick, variant]
        drop = torch.rand(batch, device=device, generator=generator) < DROP_CAPTION
        targets = make_targets(self.latents[pick].float(), teacher.sizes, FLIP, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.run.half):
            by_token: Tensor = teacher(self.model.text_encoder(ids), (ids != 0).sum(dim=1), drop, targets)
        loss = (by_token * teacher.weights).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        pace.step += 1
        parameters = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - min(EMA_DECAY, pace.step / (pace.step + 10)))
        if pace.step % LOG_EVERY == 0:
            scales = len(teacher.sizes)
            self.run.log(
                f"step {pace.step}, {pace.progress():.1%}: loss {loss.item():.4f}, {scales} scales, "
                f"{pace.seconds_a_step():.3f} s a step"
            )

    def save(self, folder: Path) -> None:
        """Running average in fp16 (what ships), and all that resuming needs: weights, moments in bf16."""
        save_shards(folder, "model", {k: v.half() for k, v in self.average.items()}, self._meta())
        state: dict[str, Tensor] = {f"weight.{name}": p.detach() for name, p in self.model.named_parameters()}
        state |= {f"average.{name}": (p - self.average[name]).bfloat16() for name, p in self.model.named_parameters()}
        names = {id(p): name for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.numel() == parameter.numel():
                        state[f"{key}.{names[id(parameter)]}"] = value.bfloat16()
        save_shards(folder, "state", state, self._meta())

    def _meta(self) -> dict[str, float]:
        return {"step": self.pace.step, "elapsed": self.pace.spent()}

    def resume(self, folder: Path) -> None:
        """Go on from the shards in `folder`, if there are any."""
        if not has_shards(folder, "state"):
            return
        state, meta = load_shards(folder, "state", self.run.device)
        self.pace.step, self.pace.elapsed = meta["step"], meta["elapsed"]
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[f"weight.{name}"])
                self.average[name].copy_(parameter - state[f"average.{name}"].float())
        names = {id(p): name for name, p in parameters.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._restore(optimizer, parameter, names[id(parameter)], state)
        self.run.log(f"resumed at step {self.pace.step}")

    def _restore(self, optimizer: torch.optim.Optimizer, parameter: Tensor, name: str, state: dict[str, Tensor]) -> None:
        keys = ("momentum_buffer",) if isinstance(optimizer, torch.optim.Muon) else ("exp_avg", "exp_avg_sq")
        values = {key: state[f"{key}.{name}"].to(parameter.dtype) for key in keys if f"{key}.{name}" in state}
        if values:
            optimizer.state[parameter].update(values)
            if "exp_avg" in values:
                optimizer.state[parameter]["step"] = torch.tensor(
                    float(self.pace.step), device=parameter.device if self.run.cuda else "cpu"
                )


def _groups(model: TextImageModel) -> tuple[list[Tensor], list[Tensor]]:
    """Weight matrices of blocks and text layers (for Muon), and all the rest (embeddings, vectors, heads)."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        inside = "block_chunks" in name or "text_encoder.layers" in name
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    return matrices, others
