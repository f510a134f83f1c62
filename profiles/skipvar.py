"""SkipVAR (fakerone-li/SkipVAR) as a schedule with rungs: each image is looked at once, then ends early or without guidance.

Two small images are decoded, before and after one scale; two logistic regressions read two numbers off them. The first says
how many of the last scales are not run (0 to 3); of an image that needs them all the second says how many of them run without
guidance. The released code is written for 13 scales: it looks at scale 9, decodes at the size of scale 4, and knows the last
three scales. For S scales this is:

- the decision after scale S - 4: behind it lie the three scales that may go;
- images at the size of scale round((S - 1) / 3), at the same place between the first and the last.

The models' numbers are the released ones whatever the model and its geometry (`skipvar.json`; the names tell the SSIM they were
fitted for: 84, the default, 86 and 88; `84-diff` reads the first number alone). Released code drops the unconditional rows for
single images only; here each image of a batch goes its own way. Without guidance the second model is not asked.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .decision import Decision, LinearModel
from .errors import ScheduleError
from .schedule import Rung, ScaleRule, Schedule

MOST = 3
"""Scales that may be left out, or run without guidance."""
DEFAULT = "84"


@lru_cache(maxsize=1)
def _released() -> dict[str, dict[str, dict[str, Any]]]:
    data: dict[str, dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_name("skipvar.json").read_text("utf-8"))[
        "models"
    ]
    return data


def skipvar_models() -> tuple[str, ...]:
    """Names of the released decision models."""
    return tuple(_released())


def skipvar(base: Schedule, model: str = DEFAULT) -> Schedule:
    """The schedule of one of the released decision models.

    Args:
        base: The dense schedule of a model.
        model: One of `skipvar_models`.

    Raises:
        ScheduleError: The model is not known, or there are too few scales.
    """
    if model not in _released():
        raise ScheduleError(f"policy skipvar-{model}: the decision models are {', '.join(skipvar_models())}")
    count = len(base.scales)
    scale, view = count - MOST - 1, round((count - 1) / 3)
    if not view < scale:
        raise ScheduleError(f"policy skipvar: {base.model} has {count} scales, too few to look at one before the last {MOST}")
    skip = _model(_released()[model]["skip"], "skip")
    models: tuple[LinearModel, ...] = (skip, _model(_released()[model]["uncond"], "noguide")) if base.guided else ()
    if not base.guided:
        models = (replace(skip, rungs=tuple(name or "dense" for name in skip.rungs)),)
    decision = Decision(scale=scale, features="detail", models=models, view=view)
    names = sorted(decision.rungs, key=lambda name: (not name.startswith("d"), not name.startswith("n"), name))
    tails = {name: _tail(base.scales, scale + 1, name) for name in names}
    rungs = (Rung(name=names[0]), *(Rung(name=name, scales=tails[name]) for name in names[1:]))
    scales = (*base.scales[: scale + 1], *tails[names[0]])
    policy = "skipvar" if model == DEFAULT else f"skipvar-{model}"
    return replace(base, policy=policy, scales=scales, rungs=rungs, decision=decision)


def _model(numbers: dict[str, Any], kind: str) -> LinearModel:
    """A released model; class 0 leaves the choice to the next one, or is the whole image where there is none."""
    whole = None if kind == "skip" else "dense"
    names = tuple(f"{kind}-{found}" if found else whole for found in numbers["classes"])
    # a model of the first number alone gives the second no weight
    missing = 2 - len(numbers["mean"])
    return LinearModel(
        mean=(*numbers["mean"], *[0.0] * missing),
        scale=(*numbers["scale"], *[1.0] * missing),
        coef=tuple((*row, *[0.0] * missing) for row in numbers["coef"]),
        intercept=tuple(numbers["intercept"]),
        rungs=names,
    )


def _tail(rules: tuple[ScaleRule, ...], first: int, name: str) -> tuple[ScaleRule, ...]:
    """The scales from `first` on, of `dense`, `skip-N` or `noguide-N`."""
    kind, _, last = name.partition("-")
    limit = len(rules) - int(last or 0)
    return tuple(
        replace(rule, run=False)
        if kind == "skip" and rule.scale >= limit
        else replace(rule, guidance=False)
        if kind == "noguide" and rule.scale >= limit
        else rule
        for rule in rules[first:]
    )
