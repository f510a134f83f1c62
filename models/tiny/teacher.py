"""Teacher forcing for a bitwise VAR model: targets from latents, and all scales in one pass.

Every token sees its own and all earlier scales (block-causal). Some target bits are flipped at random and the residual is
recomputed from the flipped sum (bitwise self-correction, Infinity section 3.3), so that the model learns to mend its own
mistakes; the labels are the true bits of that residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.geometry import Size, rope_reference
from ...profiles.model import ModelProfile
from ..infinity.blocks import Block
from ..infinity.quantizer import bits_to_code, tokens_of
from ..infinity.rope import rope_table
from ..infinity.transformer import Infinity
from ..layers import modulate
from ..resize import resize
from ..state import Rope

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Targets(NamedTuple):
    """What one batch is trained on."""

    inputs: Tensor
    """`[B, N - 1, d]`: tokens fed to scales 1, 2, ..."""
    bits: Tensor
    """`[B, N, d]`: 0 or 1, to predict."""


def make_targets(latent: Tensor, sizes: Sequence[Size], flip: float, generator: torch.Generator | None = None) -> Targets:
    """Bits to predict and tokens to see.

    Args:
        latent: `[B, d, H, W]` of the encoder.
        sizes: Token grids to train on; the first ones of the model's.
        flip: Each image and scale flips a share of its bits drawn between 0 and this.
        generator: On the latent's device.
    """
    grid = (latent.shape[-2], latent.shape[-1])
    summed = torch.zeros_like(latent)
    inputs, labels = [], []
    for index, size in enumerate(sizes):
        residual = latent - summed
        small = F.interpolate(residual, size=size, mode="area") if tuple(size) != grid else residual
        bits = (small > 0).to(latent.dtype).flatten(2).transpose(1, 2)
        labels.append(bits)
        strength = flip * torch.rand(len(bits), 1, 1, device=bits.device, generator=generator)
        flips = torch.rand(bits.shape, device=bits.device, generator=generator) < strength
        seen = torch.where(flips, 1 - bits, bits)
        summed = summed + resize(bits_to_code(seen, size, patchify=False), grid)
        if index + 1 < len(sizes):
            inputs.append(tokens_of(summed, sizes[index + 1], patchify=False))
    return Targets(torch.cat(inputs, dim=1), torch.cat(labels, dim=1))


def scale_of_token(sizes: Sequence[Size]) -> Tensor:
    """`[N]` int64: the scale each token of the sequence belongs to."""
    return torch.cat([torch.full((h * w,), index, dtype=torch.int64) for index, (h, w) in enumerate(sizes)])


def token_weights(sizes: Sequence[Size]) -> Tensor:
    """`[N]`, sum 1: a token weighs 1 / side of its scale, so that fine scales do not drown the layout."""
    weights = torch.cat([torch.full((h * w,), (h * w) ** -0.5) for h, w in sizes])
    return weights / weights.sum()


def sliced_attention(sizes: Sequence[Size]) -> Attention:
    """Block-causal attention as one unmasked call a scale, on any device."""
    ends = torch.tensor([h * w for h, w in sizes]).cumsum(0).tolist()
    spans = list(zip([0, *ends], ends, strict=False))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [
            F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale=1.0) for start, end in spans
        ]
        return torch.cat(parts, dim=2)

    return attend


def flex_attention_on(sizes: Sequence[Size], device: torch.device) -> Attention:
    """Block-causal attention that never visits masked blocks; for CUDA."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    scale = scale_of_token(sizes).to(device)
    count = len(scale)
    mask = create_block_mask(lambda _b, _h, i, j: scale[i] >= scale[j], None, None, count, count, device=str(device))
    return lambda q, k, v: flex_attention(q, k, v, block_mask=mask, scale=1.0)


def block_forward(
    block: Block, x: Tensor, shared: Tensor, rope: Rope, text: tuple[Tensor, Tensor, Tensor], attention: Attention
) -> Tensor:
    """One block over the whole sequence; same mathematics as `Block.forward`, with a block-causal mask.

    The stream keeps its dtype, so that under bf16 autocast its traffic is halved.
    """
    gamma1, gamma2, scale1, scale2, shift1, shift2 = (block.ada_gss + shared).unbind(2)
    q, k, v = block.sa.project(modulate(x, scale1, shift1), rope)
    attended = attention(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2)
    x = (x + block.sa.proj(attended) * gamma1).to(x.dtype)
    x = (x + block.ca(block.ca_norm(x), *text)).to(x.dtype)
    return (x + block.ffn(modulate(x, scale2, shift2)) * gamma2).to(x.dtype)  # type: ignore[no-any-return]


class Teacher(nn.Module):
    """The model over the first scales, all at once."""

    rope: Tensor
    weights: Tensor
    scale: Tensor

    def __init__(self, model: Infinity, profile: ModelProfile, scales: int, attention: Attention | None = None) -> None:
        super().__init__()
        self.model, self.sizes = model, profile.sizes[:scales]
        reference, width = rope_reference(profile.aspect_ratio), profile.transformer.head_width
        tables = [rope_table(size, reference, width) for size in self.sizes]
        self.register_buffer("rope", torch.cat(tables, dim=1), persistent=False)
        self.register_buffer("weights", token_weights(self.sizes), persistent=False)
        self.register_buffer("scale", scale_of_token(self.sizes), persistent=False)
        self.attention = attention or sliced_attention(self.sizes)
        self.block: Callable[..., Tensor] = block_forward

    def forward(self, text: Tensor, lengths: Tensor, drop: Tensor, targets: Targets) -> Tensor:
        """Mean cross-entropy of a bit, in nats, `[N]` by token (mean over images and bits).

        Args:
            text: `[B, T, Ct]` features of the captions.
            lengths: `[B]` int64.
            drop: `[B]` bool; where True the caption is replaced by the unconditional vectors.
            targets: From `make_targets`.
        """
        model = self.model
        text = torch.where(drop[:, None, None], model.unconditional(len(text), text.shape[1]).to(text.dtype), text)
        condition = model.condition(text, lengths)
        start = condition.sos.unsqueeze(1) + model.pos_start
        x = torch.cat([start, model.word_embed(targets.inputs)], dim=1) + model.lvl_embed(self.scale)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for layer, block in enumerate(model.blocks()):
            memory = (condition.keys[layer], condition.values[layer], condition.mask.to(condition.keys[layer].dtype))
            x = self.block(block, x, condition.shared, (self.rope[0], self.rope[1]), memory, self.attention)
        zero, one = model.logits(x, condition.head).float().unflatten(-1, (-1, 2)).unbind(-1)
        loss = F.binary_cross_entropy_with_logits(one - zero, targets.bits.float(), reduction="none")
        return loss.mean(dim=(0, 2))
