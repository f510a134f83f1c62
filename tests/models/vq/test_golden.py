"""The shared VQVAE against the official one: decoded images, residual sums, and the tokens of a latent."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_files import Golden, golden_folder
from toprovar.models.vq.quantizer import phi_index
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.vq import VqConfig
from torch import Tensor

TOLERANCE = 1e-4
FOLDER = golden_folder()


def _read(name: str) -> Golden:
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {FOLDER}; set TOPROVAR_GOLDEN to the folder of the golden vectors")
    return Golden.read(path)


def _vae(weights: dict[str, Tensor]) -> VqVae:
    """The VQVAE with the parts the files hold; its encoder stays random."""
    vocabulary, channels = weights["quantize.embedding.weight"].shape
    config = VqConfig(vocabulary=vocabulary, latent_channels=channels, base_channels=32)
    vae = VqVae(config).eval()
    missing, unexpected = vae.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in missing)
    return vae


@pytest.fixture(scope="module", params=["var_tiny", "hart_tiny"])
def case(request: pytest.FixtureRequest) -> tuple[Golden, VqVae]:
    data = _read(request.param)
    return data, _vae(data.vae_weights() | _read("vq_decoder_tiny").vae_weights())


def _sizes(data: Golden) -> list[tuple[int, int]]:
    numbers = data.meta.get("config", data.meta.get("constructor", {}).get("main", {}))["patch_nums"]
    return [(n, n) for n in numbers]


def test_decoder(case: tuple[Golden, VqVae], subtests: pytest.Subtests) -> None:
    data, vae = case
    decode, compared = vae.image_decoder(), 0
    for call in data.meta["calls"]:
        summed = data.tensors.get(f"{call}.f_hat_final")
        summed = data.tensors[f"{call}.f_hat"][-1] if summed is None else summed
        if (stored := data.tensors.get(f"{call}.image")) is None:
            continue
        compared += 1
        with subtests.test(call=call), torch.inference_mode():
            image = decode(summed).clamp(-1, 1) * 0.5 + 0.5
            # an image stored as fp16 is rounded by up to 2.5e-4
            atol = TOLERANCE if stored.dtype == torch.float32 else 3e-4
            torch.testing.assert_close(image, stored.float(), rtol=0, atol=atol)
    assert compared


def test_tokens_of_a_latent(case: tuple[Golden, VqVae]) -> None:
    data, vae = case
    with torch.inference_mode():
        indices, inputs = vae.quantize.tokenize(data.tensors["vq.f"], _sizes(data))
    assert torch.equal(torch.cat(indices, dim=1), data.tensors["vq.idx"].long())
    if "vq.var_input" in data.tensors:
        torch.testing.assert_close(torch.cat(inputs, dim=1), data.tensors["vq.var_input"], rtol=0, atol=TOLERANCE)


def test_running_sum(case: tuple[Golden, VqVae]) -> None:
    """Official indices to official sums, scale by scale, where the codes are hard."""
    data, vae = case
    name = "main" if "smooth_gumbel" not in {key.partition("main.")[2] for key in data.tensors} else None
    if name is None:
        pytest.skip("the file's main call mixes codes softly")
    sizes, index = _sizes(data), data.tensors[f"{name}.idx"].long()
    summed: Any = 0
    with torch.inference_mode():
        for scale, (part, size) in enumerate(zip(index.split([h * w for h, w in sizes], dim=1), sizes, strict=True)):
            codes = vae.quantize.codes(part)
            summed = summed + vae.quantize.residual(codes, size, sizes[-1], phi_index(scale, len(sizes)))
            torch.testing.assert_close(summed, data.tensors[f"{name}.f_hat"][scale], rtol=0, atol=TOLERANCE)


def test_convolution_of_each_scale() -> None:
    path = FOLDER.parent / "data" / "var_phi_index.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    for scales, expected in json.loads(path.read_text())["phi_index"].items():
        assert [phi_index(scale, int(scales)) for scale in range(int(scales))] == expected


def test_ties_of_ten_scales_go_to_the_later_convolution() -> None:
    assert [phi_index(scale, 10) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
