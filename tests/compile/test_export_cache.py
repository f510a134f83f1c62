"""Graphs exported once for several bundles: the same bytes as without, and nothing of another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_model import everything_at_once, small_profile
from small_var import small_var_profile
from toprovar.compile import bundle
from toprovar.compile.export_cache import exported_once, reusing_graphs
from toprovar.compile.weight_store import Exported, WeightStore
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.manifest import sha256_of
from toprovar.profiles.plan import plan_scales


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(small_var_profile(depth=1, patch_nums=(1, 2)), WeightOptions(weights="random"))


def digests(model: LoadedModel, policy: str, out: Path) -> dict[str, str]:
    bundle.build_bundle(model, baseline(policy, model.profile), out, model.text_source, lambda _: None)
    return {path.name: sha256_of(path) for path in out.iterdir()}


def test_two_builds_are_the_same_bytes_and_shared_graphs_are_exported_once(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[int] = []
    with reusing_graphs({}):
        apart = digests(model, "skip-1", tmp_path / "apart")
    export = bundle.export_scale

    def counted(step: Any, store: Any) -> Any:
        exported.append(step.plan.scale)
        return export(step, store)

    monkeypatch.setattr(bundle, "export_scale", counted)
    with reusing_graphs({}):
        digests(model, "dense", tmp_path / "first")
        assert digests(model, "skip-1", tmp_path / "second") == apart
        # how strong guidance is comes in as a number
        digests(replace(model, profile=model.profile.with_options(cfg=2.0)), "dense", tmp_path / "other")
    # each once; the scale before the one that is left out keeps no keys, so it is another graph
    scales = len(model.profile.sizes)
    assert exported == [*range(scales), scales - 2]


def test_graphs_of_other_weights_and_of_another_block_are_made_anew(model: LoadedModel) -> None:
    made, store = [], WeightStore()

    def export() -> Exported:
        made.append(Exported(proto=[], weights={}, inputs=(), outputs=()))
        return made[-1]

    other = replace(model, digests={"transformer": "other"})
    with reusing_graphs({}):
        for one in (model, model, other, model):
            exported_once(one, "condition", store, export)
        assert len(made) == 2
        # a caller may change what it gets
        exported_once(model, "condition", store, export).proto.append("placed")
        assert exported_once(model, "condition", store, export).proto == []
    with reusing_graphs({}):
        exported_once(model, "condition", store, export)
    assert len(made) == 3


def test_what_no_graph_reads_makes_no_other_graph() -> None:
    """Which layer's entropy would be read, were it read, and whether the caller drops rows before."""
    schedule = dense(small_profile())
    plans, others = (plan_scales(replace(schedule, entropy_layer=layer)) for layer in (0, 1))
    assert plans != others
    assert [plan.computed for plan in plans] == [plan.computed for plan in others]
    assert replace(plans[-1], drops_guidance=True).computed == plans[-1].computed
    first, second = (plan_scales(replace(everything_at_once(), entropy_layer=layer)) for layer in (0, 1))
    written = [plan.scale for plan in first if plan.writes_entropy]
    assert [one.scale for one, other in zip(first, second, strict=True) if one.computed != other.computed] == written == [4, 5]
