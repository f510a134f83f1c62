"""The fused decoder against the plain ones of both kinds, on the definitions of its kernels, and on the kernels on a GPU."""

from __future__ import annotations

import pytest
import torch
from small_model import small_profile
from toprovar.models.fused_vae import FusedDecoder
from toprovar.models.infinity.vae import BsqVae
from toprovar.models.random_weights import random_weights
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.vq import VqConfig
from torch import nn

VQ = VqConfig(vocabulary=16, latent_channels=8, base_channels=32, channel_mult=(1, 2, 2))


def decoders() -> dict[str, tuple[nn.Module, int]]:
    """Decoder and latent channels of each kind."""
    config = small_profile().vae
    return {"bsq": (BsqVae(config).decoder, config.bits), "vq": (VqVae(VQ).image_decoder(), VQ.latent_channels)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["bsq", "vq"])
def test_equals_the_plain_decoder(kind: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    # convolutions round fp32 to 10 bits by default
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    decoder, channels = decoders()[kind]
    random_weights(decoder, 0)
    latent = torch.randn(2, channels, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = decoder.eval()(latent)
        decoder.to(device)
        before = getattr(decoder, "post_quant_conv", None)
        found = FusedDecoder(getattr(decoder, "decoder", decoder), before)(latent.to(device)).cpu()  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 if device == "cpu" else 1e-3)
