"""A HART that runs in a fraction of a second: random weights, 5 scales up to 8 x 8 tokens, two layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from toprovar.models.family import build_steps, noise_of
from toprovar.models.generate import generate
from toprovar.models.hart.transformer import Hart
from toprovar.models.load import LoadedModel
from toprovar.models.random_weights import random_weights
from toprovar.models.text.random_features import RandomTextEncoder
from toprovar.models.vq.vae import VqVae
from toprovar.profiles.baselines import dense
from toprovar.profiles.hart import HartConfig, HartSampling
from toprovar.profiles.model import ModelProfile, TextConfig
from toprovar.profiles.plan import ScalePlan
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.profiles.vq import VqConfig
from torch import Tensor

LENGTHS = (5, 7, 1, 4)


def profile_of(config: HartConfig, sampling: HartSampling) -> ModelProfile:
    """A profile of a given shape."""
    vae = VqConfig(
        vocabulary=config.vocabulary,
        latent_channels=config.latent_channels,
        base_channels=32,
        channel_mult=(1, 1),
        res_blocks=1,
    )
    text = TextConfig(kind="llm", max_length=config.text_tokens)
    return ModelProfile(name="small-hart", family="hart", transformer=config, vae=vae, text=text, sampling=sampling)


def small_profile(transformer: Mapping[str, object] = MappingProxyType({}), **sampling: object) -> ModelProfile:
    """The shape of `small_model`; `transformer` changes it."""
    shape = {
        "depth": 2,
        "width": 64,
        "heads": 2,
        "text_channels": 24,
        "text_tokens": 7,
        "vocabulary": 96,
        "latent_channels": 8,
        "diffusion_width": 32,
        "diffusion_depth": 1,
        "diffusion_steps": 2,
        "patch_nums": (1, 2, 3, 5, 8),
    }
    config = HartConfig(**{**shape, **transformer})  # type: ignore[arg-type]
    return profile_of(config, HartSampling(**{"top_k": (40, 20), **sampling}))  # type: ignore[arg-type]


def write_hart_profile(path: Path) -> Path:
    """The small profile as a user's file."""
    path.write_text(yaml.safe_dump({"format": 1, **small_profile().to_dict()}))
    return path


def made(profile: ModelProfile) -> tuple[Hart, VqVae]:
    """A model of a profile, one of your own."""
    assert isinstance(profile.transformer, HartConfig)
    assert isinstance(profile.vae, VqConfig)
    with torch.device("meta"):
        model, vae = Hart(profile.transformer), VqVae(profile.vae)
    random_weights(model, seed=1)
    random_weights(vae, seed=2)
    with torch.no_grad():
        # logits, codes and attention of a size that decides something
        model.head.weight.mul_(30)
        vae.quantize.embedding.weight.mul_(30)
        for block in model.layers():
            block.attn.qkv_proj.weight.mul_(10)
    return model.eval(), vae.eval()


_shared = lru_cache(maxsize=1)(lambda: made(small_profile()))


def small_model(copy: bool = False) -> tuple[Hart, VqVae]:
    """One copy a process, which nothing may change, or one of your own."""
    return made(small_profile()) if copy else _shared()


def loaded(profile: ModelProfile, transformer: Hart, vae: Any) -> LoadedModel:
    """As `load_model` returns it."""
    config = profile.transformer
    text = RandomTextEncoder(config.text_channels, profile.text.max_length, 0, config.text_tokens)
    return LoadedModel(profile=profile, transformer=transformer, vae=vae, text=text, digests={"transformer": "scaled"})


def condition(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of B texts and their lengths; text i of one batch is text 0 of the batch with seed i."""
    texts = [torch.randn(7, 24, generator=torch.Generator().manual_seed(100 + seed + i)) for i in range(batch)]
    return torch.stack(texts), torch.tensor([LENGTHS[(seed + i) % 4] for i in range(batch)])


def noise(profile: ModelProfile, batch: int, seed: int) -> list[dict[str, Tensor]]:
    """Noise of every scale; image i has seed + i."""
    scales = [noise_of(profile, range(seed, seed + batch), scale) for scale in range(len(profile.sizes))]
    return [{name: torch.from_numpy(value) for name, value in scale.items()} for scale in scales]


def draw(
    schedule: Schedule,
    profile: ModelProfile | None = None,
    batch: int = 2,
    seed: int = 0,
    observe: bool = False,
    given: tuple[Tensor, Tensor] | None = None,
    model: tuple[Hart, VqVae] | None = None,
) -> tuple[Tensor, dict[int, Mapping[str, Tensor]]]:
    """Summed codes, and what every scale returned."""
    profile, (transformer, vae) = profile or small_profile(), model or small_model()
    outputs: dict[int, Mapping[str, Tensor]] = {}

    def keep(plan: ScalePlan, out: dict[str, Tensor]) -> None:
        outputs[plan.scale] = dict(out)

    steps = build_steps(loaded(profile, transformer, vae), schedule, observe)
    text = given or condition(batch, seed)
    return generate(transformer, steps, *text, noise(profile, batch, seed), on_scale=keep), outputs


def with_tokens(scale: int = 4, **tokens: object) -> Schedule:
    """Dense but for the tokens of one scale."""
    base = dense(small_profile())
    rules = list(base.scales)
    rules[scale] = replace(rules[scale], tokens=TokenRule(**tokens))  # type: ignore[arg-type]
    return replace(base, scales=tuple(rules), entropy_layer=1)
