"""A VAR model that runs in a fraction of a second: random weights, 6 scales up to 8 x 8 tokens, 32 x 32 pixels, two layers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.model import ModelProfile, TextConfig
from toprovar.profiles.var import VarConfig, VarSampling
from toprovar.profiles.vq import VqConfig

CLASSES = ("3", "7", "0", "9")


def small_var_profile(**transformer: object) -> ModelProfile:
    """A profile of the family `var`; `transformer` changes its shape."""
    shape = {"depth": 2, "width": 64, "heads": 2, "classes": 10, "vocabulary": 48, "latent_channels": 8}
    return ModelProfile(
        name="small-var",
        family="var",
        transformer=VarConfig(**{**shape, "patch_nums": (1, 2, 3, 4, 6, 8), **transformer}),  # type: ignore[arg-type]
        vae=VqConfig(vocabulary=48, latent_channels=8, base_channels=32, channel_mult=(1, 1, 2), res_blocks=1),
        text=TextConfig(kind="classes", max_length=1),
        sampling=VarSampling(cfg=3.0, top_k=20, top_p=0.9),
    )


def small_var(shared_modulation: bool = False) -> LoadedModel:
    """One copy a process; nothing changes it."""
    return _made(shared_modulation)


@lru_cache(maxsize=2)
def _made(shared_modulation: bool) -> LoadedModel:
    return load_model(small_var_profile(shared_modulation=shared_modulation), WeightOptions(weights="random"))


def write_var_profile(path: Path, **transformer: object) -> Path:
    """The small profile as a user's file."""
    path.write_text(yaml.safe_dump({"format": 1, **small_var_profile(**transformer).to_dict()}))
    return path
