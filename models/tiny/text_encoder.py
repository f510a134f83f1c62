"""The tiny model's text encoder: two pre-LN transformer layers over word embeddings.

It is trained together with the image model, small enough (0.4 M parameters) to ship inside an engine bundle. Padding
never changes the features of real tokens, so a caption gives the same image alone or in a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.errors import ToprovarError
from .vocabulary import PAD, WORDS


class _Layer(nn.Module):
    """Self-attention and MLP, each on the normalised residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """Args: `x` `[B, T, C]`; `attend` `[B, 1, 1, T]` bool, the keys that may be read."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, T, D]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        mapped: Tensor = self.mlp(self.mlp_norm(x))
        return x + mapped


class WordEncoder(nn.Module):
    """Word ids to features.

    Args:
        vocabulary: Number of words V.
        width: Feature channels C.
        layers: Transformer layers.
        heads: Attention heads; divides `width`.
        max_length: Most tokens of a text.

    Raises:
        ToprovarError: `heads` does not divide `width`.
    """

    def __init__(
        self, vocabulary: int = len(WORDS), width: int = 128, layers: int = 2, heads: int = 4, max_length: int = 16
    ) -> None:
        super().__init__()
        if width % heads:
            raise ToprovarError(f"width {width} is not a multiple of heads {heads}; change one of them")
        self.max_length = max_length
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_length, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Encodes texts.

        Args:
            ids: `[B, T]` int64, 0 where padded, T at most `max_length`.

        Returns:
            `[B, T, C]` fp32, zero where `ids` is padding.

        Raises:
            ToprovarError: T is above `max_length`.
        """
        # an exported graph keeps T symbolic, and this test would pin it
        if not torch.compiler.is_exporting() and ids.shape[1] > self.max_length:
            raise ToprovarError(f"{ids.shape[1]} tokens a text, the encoder takes {self.max_length}; cut the texts")
        position = torch.arange(ids.shape[1], device=ids.device)
        real = ids != PAD
        # the first token is always readable: a row of padding alone would divide 0 by 0
        attend = (real | (position == 0))[:, None, None]
        x = self.words(ids) + self.positions(position)
        for layer in self.layers:
            x = layer(x, attend)
        features: Tensor = self.norm(x)
        return features.float() * real[..., None]
