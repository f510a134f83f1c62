"""The Infinity transformer: text conditioning, blocks, head. What runs when is `step.py`'s business."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.infinity import BSQ_LEVELS_MAX, TransformerConfig
from ..layers import HeadNorm, Linear, RMSNorm, gelu_mlp, modulate, normal_parameter, rows_linear, silu_linear
from ..state import State
from .blocks import Block

POOL_WIDE = 4096


class Condition(NamedTuple):
    """All that depends on the text alone, computed once an image; R rows, first conditional, then unconditional."""

    sos: Tensor
    """`[R, C]`: pooled text, the start token and the source of all modulation."""
    shared: Tensor
    """`[R, 1, 6, C]`: output of the shared block modulation."""
    head: Tensor
    """`[R, 2, C]`: scale and shift of the head's norm."""
    mask: Tensor
    """`[R, 1, 1, T]`: 0 at words, -inf at padding."""
    keys: tuple[Tensor, ...]
    """A layer each, `[R, H, T, D]`: cross-attention keys."""
    values: tuple[Tensor, ...]
    """A layer each, `[R, H, T, D]`: cross-attention values."""

    def state(self) -> State:
        """The state before the first scale."""
        state = State(sos=self.sos, shared=self.shared, head=self.head, mask=self.mask)
        for layer, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            state[f"ca_k.{layer}"], state[f"ca_v.{layer}"] = k, v
        return state


class TextPool(nn.Module):
    """Attention pool of one learned query over the text."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        # official rule: heads follow the text width, not the transformer's heads
        self.heads = max(1, config.text_channels // (64 if width > POOL_WIDE else 128))
        self.mat_q = normal_parameter(1, self.heads, width // self.heads, std=0.02)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.mat_kv = Linear(config.text_channels, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """`[R, T, Ct]`, mask `[R, 1, 1, T]` -> `[R, C]`."""
        bias = torch.cat([self.zero_k_bias, self.v_bias])
        kv = rows_linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q = self.mat_q.unsqueeze(2).expand(text.shape[0], -1, -1, -1)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(output.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]


class _Pool(nn.Module):
    """Holds the pool under the official name `ca`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ca = TextPool(config)


class _Chunk(nn.Module):
    """A group of blocks under the official name `module`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.module = nn.ModuleList(Block(config) for _ in range(config.depth // config.block_chunks))


class Infinity(nn.Module):
    """Infinity's weights and the maps between text, latent tokens, residual stream and bit logits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cfg_uncond = normal_parameter(config.text_maxlen, config.text_channels, std=config.text_channels**-0.5)
        self.pos_start = normal_parameter(1, 1, width, std=0.02)
        self.text_norm = RMSNorm(config.text_channels)
        self.text_proj_for_sos = _Pool(config)
        self.text_proj_for_ca = gelu_mlp(config.text_channels, width, width)
        self.lvl_embed = nn.Embedding(BSQ_LEVELS_MAX, width)
        self.word_embed = Linear(config.token_bits, width)
        self.shared_ada_lin = silu_linear(width, 6 * width)
        self.head_nm = HeadNorm(width)
        self.head = Linear(width, 2 * config.token_bits)
        self.block_chunks = nn.ModuleList(_Chunk(config) for _ in range(config.block_chunks))

    def blocks(self) -> Iterator[Block]:
        """The blocks in order, whatever chunk they are stored in."""
        for chunk in self.block_chunks:
            yield from chunk.module  # type: ignore[misc]

    def condition(self, text: Tensor, lengths: Tensor) -> Condition:
        """Everything that depends on the text alone.

        Args:
            text: `[R, T, Ct]` features of each row, in the model's dtype or fp32; what stands behind a row's length is ignored.
            lengths: `[R]` int64, number of valid features of each row, 1 to T.
        """
        visible = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        dtype = self.pos_start.dtype
        mask = torch.where(visible, 0.0, float("-inf"))[:, None, None, :].to(dtype)
        # features of T5 may be too large for fp16 until they are normalised
        text = self.text_norm(torch.where(visible[..., None], text, 0.0)).to(dtype)
        sos = self.text_proj_for_sos.ca(text, mask)
        projected = self.text_proj_for_ca(text)
        pairs = [block.ca.keys_values(projected) for block in self.blocks()]
        return Condition(
            sos=sos,
            shared=self.shared_ada_lin(sos).unflatten(-1, (1, 6, -1)),
            head=self.head_nm.ada_lin(sos).unflatten(-1, (2, -1)),
            mask=mask,
            keys=tuple(k for k, _ in pairs),
            values=tuple(v for _, v in pairs),
        )

    def initial_state(self, text: Tensor, lengths: Tensor) -> State:
        """The state before the first scale; arguments as of `condition`."""
        return self.condition(text, lengths).state()

    def unconditional(self, batch: int, length: int) -> Tensor:
        """Features of the unconditional rows: the learned vectors, cut to the prompt's length: `[B, T, Ct]`."""
        return self.cfg_uncond[:length].unsqueeze(0).expand(batch, -1, -1)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """`[R, N, C]`, head modulation `[R, 2, C]` -> bit logits `[R, N, 2 d]`: entry 2j is bit 0, 2j + 1 bit 1."""
        return self.head(modulate(x, head[:, :1], head[:, 1:]))  # type: ignore[no-any-return]
