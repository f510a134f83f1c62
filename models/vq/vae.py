"""The VQVAE: a convolutional encoder and decoder with single-head attention at the lowest resolution, and the quantiser.

Names follow the released `vae_ch160v4096z32.pth`. Generation needs the quantiser's codes and `ImageDecoder` only.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...profiles.vq import VqConfig
from ..conv_vae import GROUPS, ConvDecoder, ConvEncoder, Layers, SwishNorm
from .quantizer import Quantizer


class PositionAttention(nn.Module):
    """x + attention of one head over all positions; scale C ** -0.5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, C, h, w]`."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).unflatten(-1, (3, -1)).unbind(-2)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


LAYERS = Layers(nn.Conv2d, SwishNorm, PositionAttention)


class ImageDecoder(nn.Module):
    """Summed codes `[B, d, H, W]` -> image `[B, 3, H * stride, W * stride]`, about [-1, 1], not clamped.

    Holds two parts of a `VqVae` under their names there.
    """

    def __init__(self, vae: VqVae) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, summed: Tensor) -> Tensor:
        # codes are summed in fp32 whatever the weights are
        return self.decoder(self.post_quant_conv(summed.to(self.post_quant_conv.weight.dtype)))  # type: ignore[no-any-return]


class VqVae(nn.Module):
    """All parts under their official names."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.latent_channels, config.base_channels, config.channel_mult, config.res_blocks)
        self.encoder, self.decoder = ConvEncoder(LAYERS, *shape), ConvDecoder(LAYERS, *shape)
        self.quantize = Quantizer(config)
        self.quant_conv, self.post_quant_conv = (
            nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1) for _ in range(2)
        )

    def encode(self, image: Tensor) -> Tensor:
        """Image `[B, 3, h, w]` in [-1, 1] -> latent `[B, d, H, W]` for `Quantizer.tokenize`."""
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]

    def image_decoder(self) -> ImageDecoder:
        """What turns summed codes into an image; shares this module's weights."""
        return ImageDecoder(self).eval()
