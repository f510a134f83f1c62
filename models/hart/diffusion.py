"""The residual diffusion head: what the codebook leaves out at the last scale, drawn in eight steps.

A cosine schedule of 1000 steps is respaced; the network predicts the noise and an interpolation of the log variance between
its two bounds (arXiv 2102.09672). The noise comes from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Linear, silu_linear
from .embedding import SinusoidEmbedding, sinusoid

TRAINED_STEPS = 1000
BETA_MAX = 0.999
RESIDUAL_SCALE = 0.6
"""A residual is this times the head's output."""


class Step(NamedTuple):
    """Constants of one respaced step; see `diffusion_steps`."""

    timestep: int
    log_beta: float
    log_variance: float
    mean_start: float
    mean_now: float
    recip: float
    recip_minus_one: float


def diffusion_steps(count: int) -> tuple[Step, ...]:
    """Constants of the sampler, from the cleanest step (index 0) to pure noise.

    Args:
        count: Steps to take, 2 to 1000.
    """

    def signal(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = TRAINED_STEPS
    total, products = 1.0, []
    for t in range(n):
        total *= 1 - min(1 - signal((t + 1) / n) / signal(t / n), BETA_MAX)
        products.append(total)
    kept = [round(i * (n - 1) / (count - 1)) for i in range(count)]
    alphas = [products[t] for t in kept]
    before = [1.0, *alphas[:-1]]
    betas = [1 - now / then for now, then in zip(alphas, before, strict=True)]
    variances = [beta * (1 - then) / (1 - now) for beta, now, then in zip(betas, alphas, before, strict=True)]
    # the first is 0 and has no logarithm
    variances[0] = variances[1]
    return tuple(
        Step(
            timestep=kept[i],
            log_beta=math.log(betas[i]),
            log_variance=math.log(variances[i]),
            mean_start=betas[i] * math.sqrt(before[i]) / (1 - alphas[i]),
            mean_now=(1 - before[i]) * math.sqrt(1 - betas[i]) / (1 - alphas[i]),
            recip=math.sqrt(1 / alphas[i]),
            recip_minus_one=math.sqrt(1 / alphas[i] - 1),
        )
        for i in range(count)
    )


class _ResBlock(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift), chunks in the order shift, scale, gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = silu_linear(width, 3 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).unflatten(-1, (3, -1)).unbind(-2)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)  # type: ignore[no-any-return]


class _FinalLayer(nn.Module):
    """Norm without weights, shift and scale, linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = Linear(width, out)
        self.adaLN_modulation = silu_linear(width, 2 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).unflatten(-1, (2, -1)).unbind(-2)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """The network: `[n, d]` noisy residuals, a timestep and conditions to predicted noise and variance, `[n, 2 d]`."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = SinusoidEmbedding(width)
        self.cond_embed = Linear(condition_width, width)
        self.input_proj = Linear(channels, width)
        self.res_blocks = nn.ModuleList(_ResBlock(width) for _ in range(depth))
        self.final_layer = _FinalLayer(width, 2 * channels)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`x` `[..., d]`, `time` and `condition` broadcastable to `[..., W]`, both embedded."""
        y = time + condition
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)  # type: ignore[no-any-return]


class DiffusionHead(nn.Module):
    """Denoiser and sampler, the denoiser under the official name `net`."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int, steps: int) -> None:
        super().__init__()
        self.net = Denoiser(channels, condition_width, width, depth)
        self.steps = diffusion_steps(steps)

    def timesteps(self) -> Tensor:
        """Sinusoids of the steps, the cleanest first: `[steps, 256]` fp32 on the CPU; a caller keeps them on its device."""
        return torch.stack([sinusoid(step.timestep) for step in self.steps])

    def sample(self, condition: Tensor, noise: Tensor, timesteps: Tensor, mix: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Draw residuals.

        Args:
            condition: `[R, n, C]`; with guidance the conditional rows, then the unconditional ones, R = 2 B, else R = B.
            noise: `[B, n, steps, d]` fp32 normal: the start, then what each step but the last adds.
            timesteps: From `timesteps`, on the device of the noise.
            mix: Guidance, `[R, n, d]` of both kinds of rows to `[B, n, d]`, or None without.

        Returns:
            `[B, n, d]` fp32.
        """
        batch, dtype = noise.shape[0], condition.dtype
        condition, times = self.net.cond_embed(condition), self.net.time_embed(timesteps)
        x = noise[:, :, 0]
        for index in reversed(range(len(self.steps))):
            # both halves are denoised from the conditional one, and its variance is taken
            rows = x if mix is None else torch.cat([x, x])
            epsilon, variance = self.net(rows.to(dtype), times[index], condition).float().unflatten(-1, (2, -1)).unbind(-2)
            x = _mean(self.steps[index], x, epsilon if mix is None else mix(epsilon))
            if index:
                x = x + _deviation(self.steps[index], variance[:batch]) * noise[:, :, len(self.steps) - index]
        return x * RESIDUAL_SCALE


def _mean(step: Step, x: Tensor, epsilon: Tensor) -> Tensor:
    """Mean of the step before, given x and the predicted noise."""
    start = (step.recip * x - step.recip_minus_one * epsilon).clamp(-1, 1)
    return step.mean_start * start + step.mean_now * x


def _deviation(step: Step, variance: Tensor) -> Tensor:
    """Standard deviation, from the network's interpolation between the bounds: -1 is the lower, 1 the upper one."""
    share = (variance + 1) / 2
    return torch.exp(0.5 * (share * step.log_beta + (1 - share) * step.log_variance))
