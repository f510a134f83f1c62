"""A model of the shipped family that runs in a fraction of a second: random weights, 64 x 64 pixels, two layers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import yaml
from toprovar.calibrate.prompts import PromptSet
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.baselines import dense
from toprovar.profiles.model import ModelProfile, load_profile
from toprovar.profiles.schedule import Schedule, TokenRule

PROMPTS = ("a red circle", "two blue stars", "a green square above a heart", "three rings", "a white cross", "a cup")


def small_profile(depth: int = 2) -> ModelProfile:
    """The tiny profile, smaller still, under its own name."""
    tiny = load_profile("tiny")
    transformer = replace(tiny.transformer, depth=depth, width=64, heads=2, block_chunks=depth)
    # of a search, most is decoding
    vae = replace(tiny.vae, channel_mult=(1, 1, 1, 2))
    return replace(tiny, name="small", transformer=transformer, vae=vae, pixel_budget="0.06M")


@lru_cache(maxsize=4)
def small_model(depth: int = 2) -> LoadedModel:
    """One copy a process; nothing changes it."""
    return load_model(small_profile(depth), WeightOptions(weights="random"))


def prompt_set(prompts: tuple[str, ...] = PROMPTS) -> PromptSet:
    """As `load_prompts` returns it."""
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    return PromptSet(prompts=prompts, source="prompts.txt", duplicates=0, blank=0, sha256=digest)


def write_profile(path: Path) -> Path:
    """The small profile as a user's file."""
    path.write_text(yaml.safe_dump({"format": 1, **small_profile().to_dict()}))
    return path


def everything_at_once() -> Schedule:
    """All four dimensions in one schedule: a scale left out, guidance dropped, a layer skipped, tokens pruned."""
    base = dense(small_profile())
    rules = list(base.scales)
    rules[3] = replace(rules[3], run=False)
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(60, 144), fill="cache", cache_scale=4))
    rules[6] = replace(rules[6], guidance=False, tokens=TokenRule(kept=(128, 128)))
    rules[2] = replace(rules[2], skip_layers=(0,))
    return replace(base, policy="everything", scales=tuple(rules), entropy_layer=1)
