"""Training of the tiny BSQ-VAE: straight-through signs at every scale, L1 and gradient L1 on pixels, commitment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...profiles.geometry import Size
from ...profiles.model import ModelProfile
from ..infinity.parts import infinity_parts
from ..infinity.quantizer import tokenize
from ..infinity.vae import BsqVae
from .pace import Pace, Run
from .render import SceneTensors, render, take, to_tensors
from .scenes import sample_scenes

LEARNING_RATE = 1e-3
SCENES = 50_000


Module = Callable[[Tensor], Tensor]


def reconstruct(encode: Module, decode: Module, images: Tensor, sizes: tuple[Size, ...]) -> tuple[Tensor, Tensor]:
    """Decode the quantised latent: `[B, 3, h, w]` -> the same, and the commitment loss (a scalar)."""
    latent = encode(images).float()
    with torch.autocast(latent.device.type, enabled=False):
        summed = tokenize(latent.detach(), sizes)[1]
    commitment = (latent - summed).square().mean()
    # straight through: the decoder sees the codes, the encoder gets the decoder's gradient
    return decode(latent + (summed - latent).detach()).float(), commitment


def pixel_loss(images: Tensor, decoded: Tensor) -> Tensor:
    """L1, and half an L1 on horizontal and vertical differences, which keeps edges sharp."""
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges


def psnr(images: Tensor, decoded: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1], in dB, mean over the batch."""
    mse = ((images - decoded.clamp(-1, 1)) / 2).square().flatten(1).mean(dim=1)
    return float((-10 * mse.clamp_min(1e-10).log10()).mean())


def train_vae(profile: ModelProfile, pace: Pace, run: Run) -> BsqVae:
    """Train from scratch; one warm-up and one straight decay over the whole pace."""
    torch.manual_seed(run.seed)
    vae = BsqVae(infinity_parts(profile)[1])
    vae.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    encode, decode, draw = run.compile(vae.encoder), run.compile(vae.decoder), run.compile(render)
    scenes = to_tensors(sample_scenes(SCENES, np.random.default_rng(run.seed)), run.device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=run.cuda)
    generator = torch.Generator(run.device).manual_seed(run.seed)
    pace.start()
    while pace.progress() < 1:
        index = torch.randint(SCENES, (pace.batch,), device=run.device, generator=generator)
        images = draw(take(scenes, index)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.cuda):
            decoded, commitment = reconstruct(encode, decode, images, profile.sizes)
        loss = pixel_loss(images, decoded) + 0.1 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = pace.rate(LEARNING_RATE)
        optimizer.step()
        pace.step += 1
        if pace.step % 100 == 0:
            quality = psnr(images, decoded.detach())
            run.log(f"vae step {pace.step}: loss {loss.item():.4f}, {quality:.2f} dB, {pace.seconds_a_step():.3f} s a step")
    vae.eval()
    return vae


@torch.no_grad()
def encode_scenes(vae: BsqVae, scenes: SceneTensors, run: Run, batch: int = 250) -> Tensor:
    """Latents of all scenes `[n, d, H, W]` fp16."""
    encode, draw = run.compile(vae.encoder), run.compile(render)
    parts = []
    for index in torch.arange(len(scenes["count"]), device=run.device).split(batch):
        images = draw(take(scenes, index)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.cuda):
            parts.append(encode(images).half())
    return torch.cat(parts)


@torch.no_grad()
def reconstruction_psnr(vae: BsqVae, profile: ModelProfile, count: int, seed: int, device: torch.device) -> float:
    """PSNR in dB of fresh scenes through encoder, quantiser and decoder, in fp32."""
    images = render(to_tensors(sample_scenes(count, np.random.default_rng(seed)), device))
    parts = images.split(32)
    return float(np.mean([psnr(x, reconstruct(vae.encoder, vae.decoder, x, profile.sizes)[0]) for x in parts]))
