"""Models, policies and requests of the matrix test: everything a family may be asked for, as small as it gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import hart_model
import small_model
import small_var
import torch
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.schedule import Schedule, TokenRule

POLICIES = ("dense", "skip-1", "noguide-3", "skip-1+noguide-3", "fastvar", "skipvar", "entropy")
FAMILIES = ("infinity", "var", "hart")
SHARED = "var-shared"
"""VAR with one modulation for all blocks, beside the families: what is its own is made before the first scale."""
ASPECTS = {"infinity": (1.0, 2.0, 0.667), "var": (1.0,), SHARED: (1.0,), "hart": (1.0,)}
"""Height over width; VAR and HART draw squares only."""
OBLONG = {2.0: ("dense", "skip-1", "fastvar", "entropy"), 0.667: ("skip-4",)}
"""Policies of upright images, without guidance, and of wide ones, with it."""
UNGUIDED_SQUARES = {"infinity": (), "var": ("dense", "skipvar", "entropy"), "hart": ()}
"""Policies of squares without guidance: with upright images, each that needs none meets a model without it.

HART without guidance has a test of its own (`tests/models/hart/test_bundle.py`).
"""
UNGUIDED = {"infinity": 1.0, "var": 0.0, SHARED: 0.0, "hart": 0.0}
"""The guidance scale at which a family runs no unconditional rows."""
SPOKEN = ("a red circle", "two blue stars beside a cup", "a cup", "three white rings")
PROMPTS = {"infinity": SPOKEN, "var": small_var.CLASSES, SHARED: small_var.CLASSES, "hart": SPOKEN}
REFUSED = {("hart", "skipvar")}
"""Policies that these small models have too few scales for."""
NEEDS_GUIDANCE = {"noguide-3", "skip-1+noguide-3"}
PLANNED = {("var", "skipvar"), ("var", "entropy"), ("hart", "fastvar"), ("hart", "entropy")}
"""Guided ones that run as plans too, in the stand-in of TensorRT; Infinity does in tests of its own."""


@dataclass(frozen=True)
class Case:
    """One bundle: every batch size and every request runs on it."""

    family: str
    policy: str
    aspect: float
    guided: bool

    def __str__(self) -> str:
        return f"{self.family}-{self.policy}-{self.aspect:g}-{'guided' if self.guided else 'unguided'}"

    @property
    def refused(self) -> bool:
        return (self.family, self.policy) in REFUSED or (not self.guided and self.policy in NEEDS_GUIDANCE)

    @property
    def planned(self) -> bool:
        return self.guided and (self.family, self.policy) in PLANNED


def cases() -> Iterator[Case]:
    """Every family and policy with guidance on squares; a few without it, and on each other shape that a family has."""
    for family in FAMILIES:
        yield from (Case(family, policy, 1.0, True) for policy in POLICIES)
        yield from (Case(family, policy, 1.0, False) for policy in (*UNGUIDED_SQUARES[family], *sorted(NEEDS_GUIDANCE)))
        for aspect in ASPECTS[family][1:]:
            yield from (Case(family, policy, aspect, aspect < 1) for policy in OBLONG[aspect])


def model_of(case: Case) -> LoadedModel:
    """The family's small model at the case's aspect and guidance; the weights are shared."""
    model = _made(case.family)
    options = {"cfg": None if case.guided else UNGUIDED[case.family]}
    if len(ASPECTS[case.family]) > 1:
        options["aspect_ratio"] = case.aspect
    return replace(model, profile=model.profile.with_options(**options))


def schedule_of(case: Case, profile: ModelProfile) -> Schedule:
    """The policy's schedule.

    Raises:
        ScheduleError: The model cannot have it.
    """
    return _pruned(profile) if case.policy == "entropy" else baseline(case.policy, profile)


def _pruned(profile: ModelProfile) -> Schedule:
    """Half of the tokens of the last two scales, by entropy: in one layer, the others from a cache, then held in all layers."""
    layers = profile.transformer.depth
    base = replace(dense(profile), entropy_layer=layers - 1)
    *rules, cached, held = base.scales
    kept = (*(cached.count,) * (layers - 1), cached.count // 2)
    cached = replace(cached, tokens=TokenRule(kept=kept, fill="cache", cache_scale=len(rules) - 1))
    held = replace(held, tokens=TokenRule(kept=(held.count // 2,) * layers, fill="hold"))
    return replace(base, policy="entropy", scales=(*rules, cached, held))


@lru_cache(maxsize=8)
def _made(family: str) -> LoadedModel:
    if family == "infinity":
        return small_model.small_model()
    if family == "hart":
        profile = hart_model.small_profile()
        model = hart_model.loaded(profile, *hart_model.made(profile))
        return replace(model, text_source={"kind": "random", "seed": 0})
    # enough scales for every policy
    grids = (1, 2, 3, 4, 5, 6, 8)
    profile = small_var.small_var_profile(depth=2, patch_nums=grids, shared_modulation=family == SHARED)
    model = load_model(profile, WeightOptions(weights="random"))
    model = replace(model, digests={**model.digests, "scaled": "30"})
    with torch.no_grad():
        # logits and codes of a size that decides something
        model.transformer.head.weight.mul_(30)  # type: ignore[union-attr, operator]
        model.vae.quantize.embedding.weight.mul_(30)  # type: ignore[union-attr, operator]
    return model
