"""The HART transformer: text conditioning, blocks, heads. What runs when is `step.py`'s business."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...profiles.hart import HartConfig
from ..layers import HeadNorm, Linear, RMSNorm
from ..state import State
from .blocks import Block
from .diffusion import DiffusionHead
from .embedding import SinusoidEmbedding


class _HeadNorm(HeadNorm):
    """Norm before the head, and its modulation."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__(config.width)
        self.ln_wo_grad = RMSNorm(config.width, config.norm_eps)


class Hart(nn.Module):
    """HART's weights and the maps between text, latent tokens, residual stream, logits and residuals."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.word_embed = Linear(config.latent_channels, width)
        self.context_embed = Linear(config.text_channels, width)
        self.context_norm = RMSNorm(config.text_channels, config.norm_eps)
        self.lvl_embed = SinusoidEmbedding(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(config)
        self.head = Linear(width, config.vocabulary)
        self.decoder_norm = RMSNorm(width, config.norm_eps)
        self.diffloss = DiffusionHead(
            config.latent_channels, width, config.diffusion_width, config.diffusion_depth, config.diffusion_steps
        )

    def layers(self) -> Iterator[Block]:
        """The blocks in order."""
        yield from self.blocks  # type: ignore[misc]

    def initial_state(self, text: Tensor, lengths: Tensor) -> State:
        """Everything that depends on the text alone.

        Args:
            text: `[R, T, Ct]` features with those of the padding, T as the profile says; a row of zeros is unconditional.
            lengths: `[R]` int64, number of tokens that are no padding; not read in unconditional rows.

        Returns:
            `sos` `[R, T, C]`, the text as the first tokens of the sequence; `head` `[R, 2, C]`, scale and shift of the head's
            norm; `positions` `[R, T]` fp32, the image stands behind the last one.
        """
        dtype = self.context_embed.weight.dtype
        # hidden states of a language model may be too large for fp16 until they are normalised
        context = self.context_embed(self.context_norm(text).to(dtype))
        pooled = context.amax(dim=1)
        words = torch.where(text.abs().amax(dim=(1, 2)) > 0, lengths, 0)
        return State(
            sos=context,
            head=self.head_nm.ada_lin(pooled).unflatten(-1, (2, -1)),
            positions=text_positions(words, self.config.text_tokens, self.config.text_padding),
        )

    def unconditional(self, batch: int, length: int) -> Tensor:
        """Features of the unconditional rows: zeros, `[B, T, Ct]`."""
        return self.head.weight.new_zeros(batch, length, self.config.text_channels)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """`[R, N, C]`, head modulation `[R, 2, C]` -> logits of the codes `[R, N, V]`."""
        return self.head(self.head_nm.ln_wo_grad(x) * (1 + head[:, :1]) + head[:, 1:])  # type: ignore[no-any-return]

    def residual_condition(self, x: Tensor, code: Tensor) -> Tensor:
        """What the diffusion head sees: hidden states `[R, n, C]` and the code that was drawn `[R, n, d]` -> `[R, n, C]`."""
        return self.decoder_norm(x + self.word_embed(code.to(x.dtype)))  # type: ignore[no-any-return]


def text_positions(lengths: Tensor, count: int, padding: str) -> Tensor:
    """Position of every text token: how many words stand before it, that of the last word at padding behind them.

    Args:
        lengths: `[R]` int64; 0 puts every token at 0.
        count: Tokens T.
        padding: `right` or `left` of the words; padding on the left stands at -1.

    Returns:
        `[R, T]` fp32.
    """
    index, lengths = torch.arange(count, device=lengths.device), lengths[:, None]
    if padding == "right":
        return torch.minimum(index, (lengths - 1).clamp_min(0)).float()
    return torch.where(lengths == 0, 0, (index - (count - lengths)).clamp_min(-1)).float()
