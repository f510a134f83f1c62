"""Modules without values, and that nothing on the way to an image imports torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from toprovar.models.family import family_of
from toprovar.models.infinity.vae import _Lfq
from toprovar.models.skeleton import skeleton
from toprovar.profiles.model import load_profile, shipped

LOAD_AND_CALL = """
import sys, torch
from toprovar.models.family import family_of
from toprovar.models.load import WeightOptions, load_model
from toprovar.models.skeleton import skeleton
from toprovar.plugins.flash_attention_entropy import flash_attention, flash_attention_entropy
from toprovar.plugins.token_select import gather_rows, scatter_rows, select_tokens
from toprovar.profiles.model import load_profile, shipped

for name in shipped():
    profile = load_profile(name)
    with skeleton():
        family_of(profile).transformer(profile.transformer), family_of(profile).vae(profile.vae)
model = load_model(load_profile("tiny"), WeightOptions())
with torch.inference_mode():
    model.text.encode_prompts(["a red star"])
    q = torch.randn(1, 2, 4, 16)
    entropy = flash_attention_entropy(q, q, q, 1.0)[1][0]
    flash_attention(q, q, q, 1.0)
    kept = select_tokens(entropy, 2)
    scatter_rows(q[0], kept, gather_rows(q[0], kept))
print(*({"sympy", "torch._dynamo"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", shipped())
def test_no_tensor_of_a_shipped_model_has_values(name: str) -> None:
    profile = load_profile(name)
    family = family_of(profile)
    with skeleton():
        modules = [family.transformer(profile.transformer), family.vae(profile.vae)]
    assert all(tensor.is_meta for module in modules for tensor in module.state_dict().values())


def test_mask_of_64_bits_wraps_as_the_released_one() -> None:
    """Red before: 2 ** 63 was refused, and with it the 64-bit VAE."""
    with skeleton():
        assert _Lfq(64).mask.is_meta
    mask = _Lfq(64).mask
    assert mask.dtype == torch.int64
    assert mask.tolist() == [-(2**63), *(2**bit for bit in reversed(range(63)))]


def test_outside_tensors_are_filled_as_ever() -> None:
    with skeleton():
        pass
    assert torch.nn.init.normal_(torch.zeros(8)).abs().sum() > 0


def test_neither_loading_nor_the_kernels_import_torchs_compiler() -> None:
    """It takes seconds, and an engine has no use for it."""
    done = subprocess.run([sys.executable, "-c", LOAD_AND_CALL], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
