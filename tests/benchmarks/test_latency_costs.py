"""The cost table of the target `cuda`, its graphs called where a GPU would replay them: every family, every point priced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from direct_graphs import without_a_gpu
from matrix_cases import FAMILIES, Case, model_of
from toprovar.benchmarks.decision_probes import decision_probes
from toprovar.benchmarks.latency import costs
from toprovar.benchmarks.latency.programs import Request, Times
from toprovar.models.family import family_of
from toprovar.models.load import LoadedModel
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.plan import ScalePlan, plan_scales
from toprovar.profiles.schedule import TokenRule

PART = Times(median=5.0, low=5.0, high=5.0)


def called(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Times]:
    """One millisecond a call, which has run."""
    for call in calls.values():
        assert torch.isfinite(call()).all()
    return {name: Times(median=1.0, low=1.0, high=1.0) for name in calls}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_of_a_family_is_measured(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(Case(family, "dense", 1.0, True))
    without_a_gpu(monkeypatch)
    monkeypatch.setattr(costs, "Captured", lambda call: SimpleNamespace(replay=call))
    monkeypatch.setattr(costs, "interleaved", called)
    monkeypatch.setattr(costs, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(costs, "WHOLE_ONLY", 36)
    monkeypatch.setattr(costs, "machine", lambda: {"gpu": "a GPU", "torch": "2", "triton": "3", "cuda": "13"})
    base = dense(model.profile)
    parts = {f"{h} x {w}": PART for h, w in model.profile.sizes} | {"condition": PART, "decode": PART}
    table = costs.cost_table(model, Request.make(model, 1, 5), model.decoder, lambda: torch.zeros(1), parts, runs=1)
    # what is not layers is what the dense image has beside them
    assert table.predict(base) == pytest.approx(PART.median * len(parts))
    rules = list(base.scales)
    half = TokenRule(kept=(rules[-1].count // 2,) * base.layers, score="entropy", fill="cache", cache_scale=len(rules) - 2)
    rules[-1] = replace(rules[-1], tokens=half)
    for schedule in (
        replace(base, scales=tuple(rules)),
        baseline("skip-1", model.profile),
        baseline("noguide-2", model.profile),
    ):
        assert 0 < table.predict(schedule) <= table.predict(base) + 1e-9
    # dense and picking take the same made-up time here
    assert {(entry.features, entry.ms) for entry in table.decisions} >= {("entropy", 0.0)}
    assert table.predict(decision_probes(model.profile)[0]) == table.predict(base)


def test_layers_are_told_from_what_surrounds_them() -> None:
    """A scale without layers runs none, and one with some of its tokens runs them all."""
    model = model_of(Case("var", "dense", 1.0, True))
    plan = plan_scales(dense(model.profile))[-1]
    assert tokens_of_layers(model, costs.without_layers(plan, 2)) == []
    assert tokens_of_layers(model, costs.with_tokens(plan, 2, 10)) == [10] * len(plan.layers)
    assert tokens_of_layers(model, costs.with_tokens(plan, 1, plan.count)) == [plan.count] * len(plan.layers)


def tokens_of_layers(model: LoadedModel, probe: ScalePlan) -> list[int]:
    """How many tokens every layer of a probe runs."""
    request, seen = Request.make(model, 1, 1), list[int]()
    text = torch.cat([request.text] * probe.rows), torch.cat([request.lengths] * probe.rows)
    steps = family_of(model.profile).fast_steps(model, [probe], 1)

    def see(block: torch.nn.Module, given: tuple[Any, ...], out: object) -> None:
        seen.append(given[0].shape[1])

    hooks = [block.register_forward_hook(see) for block in steps.steps[0].blocks()]
    with torch.inference_mode():
        steps.resume(*text, costs.made_up_state(steps, text, 1), request.noise)
    for hook in hooks:
        hook.remove()
    return seen
