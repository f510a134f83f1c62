"""The cost table of ONNX Runtime: times of graphs are taken apart rightly, and cover what a search asks for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_model import small_model, small_profile
from small_var import small_var_profile, write_var_profile
from toprovar.benchmarks import onnx_costs
from toprovar.benchmarks.decision_probes import decision_probes
from toprovar.benchmarks.evaluate.cli import main as evaluate
from toprovar.benchmarks.graph_times import GraphTimes
from toprovar.benchmarks.onnx_costs import GUIDED, HALF, WHOLE, main, probes, runs, times_of
from toprovar.calibrate.search.actions import Change, Plan, build, late_scales
from toprovar.compile.cli import main as build_engine
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.costs import CostTable
from toprovar.profiles.model import load_profile
from toprovar.profiles.plan import ScalePlan, plan_scales

QUIET = "TOPROVAR_QUIET_MACHINE"


def made_ms(plan: ScalePlan, rows: int) -> float:
    """Milliseconds of a graph by a formula: layers, and what surrounds them, which guidance makes dearer."""
    beside = 2.0 + 0.5 * rows + (0.25 if plan.guidance else 0.0)
    return beside + sum(rows * (0.1 + 0.01 * n * (1 + 0.01 * plan.past[0])) for n in plan.kept if n)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["tiny", "infinity-2b"])
def test_times_are_taken_apart(name: str, batch: int) -> None:
    """Graphs of 8 of 32 layers tell the time of one, at every measured point, and the dense scale comes out as measured."""
    for plan in plan_scales(dense(load_profile(name)))[1:]:
        plans = probes(plan)
        assert {plan.rows for plan in plans.values()} == {1, 2}
        ms = {(key, b): made_ms(plans[key], 2 * b if key == GUIDED else b) for key, b in runs(plans, batch)}
        layers, scales = times_of(plans, ms, batch)
        for entry in layers:
            rows = entry.rows * batch
            assert entry.ms == pytest.approx(rows * (0.1 + 0.01 * entry.tokens * (1 + 0.01 * entry.past)))
        assert [entry.ms for entry in scales] == pytest.approx([2 + 0.5 * batch, 2 + 0.5 * 2 * batch + 0.25])
        shares = {entry.tokens / plan.count for entry in layers}
        assert max(shares) == 1
        assert plan.count < 16 or min(shares) <= 0.15


def test_noise_makes_nothing_negative() -> None:
    plans = probes(plan_scales(dense(small_profile()))[3])
    ms = dict.fromkeys(runs(plans, 1), 5.0) | {(WHOLE, 1): 12.0, (HALF, 1): 2.0}
    layers, scales = times_of(plans, ms, 1)
    assert all(entry.ms >= 0 for entry in layers)
    assert scales[0].ms == 0.0


def test_command_writes_a_table_that_prices_every_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # few graphs: exporting them is what takes the time
    monkeypatch.setattr(onnx_costs, "SHARES", (0.1,))
    grids, path = (1, 6), tmp_path / "costs.json"
    profile, file = small_var_profile(patch_nums=grids), write_var_profile(tmp_path / "small.yaml", patch_nums=grids)
    command = ["--model", str(file), "--weights", "random", "--rounds", "2"]
    assert main([*command, "--threads", "1", "--save-costs", str(path)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = CostTable.load(path)
    assert told["dense_ms"] == pytest.approx(table.predict(dense(profile)), abs=0.01)
    assert (table.model, table.target, table.batch, table.notes["rounds"]) == ("small-var", "onnx", 1, 2)
    count = len(profile.sizes)
    for schedule in (baseline("skip-1", profile), baseline("noguide-1", profile)):
        assert table.predict(schedule) > table.fixed_ms
    for share in (0.75, 0.15):
        for fill in ("hold", "cache"):
            changes = {scale: Change(share, fill, (0,)) for scale in late_scales(profile)[-1:]}
            assert table.predict(build(Plan(count, count - 1, changes), profile)) > table.fixed_ms


def test_every_way_to_pick_is_timed(tmp_path: Path) -> None:
    """By entropy that is a look at a small map, by detail two small images are decoded first."""
    timer = GraphTimes(small_model(), tmp_path, 1, 5, 2)
    found = [timer.decision(schedule, 1) for schedule in decision_probes(small_profile())]
    ms = {entry.features: entry.ms for entry in found}
    assert 0 < ms["entropy"] < ms["detail"]
    assert len({entry.tokens for entry in found}) > 1


@pytest.mark.skipif(QUIET not in os.environ, reason=f"timings need an idle machine; set {QUIET}=1 on one (15 minutes)")
def test_predictions_hold_on_a_quiet_machine(tmp_path: Path) -> None:
    """Predicted and measured latency agree within 15 %, for every dimension of the tiny model's schedules."""
    profile, costs = load_profile("tiny"), tmp_path / "costs.json"
    assert main(["--model", "tiny", "--save-costs", str(costs)]) == 0
    names = {"dense": dense(profile), "skip-1": baseline("skip-1", profile), "noguide-3": baseline("noguide-3", profile)}
    pruned = {8: Change(0.5), 9: Change(0.35, "hold", (2, 5))}
    names["tokens"] = build(Plan(10, 8, pruned), profile)
    names["cache"] = build(Plan(10, 10, {9: Change(0.5, "cache")}), profile)
    for name, schedule in names.items():
        schedule.save(tmp_path / f"{name}.yaml")
        assert build_engine(["--schedule", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]) == 0
    (tmp_path / "prompts.txt").write_text("\n".join(f"a photo of {n} stars" for n in ("two", "three", "four") * 4))
    engines = [str(tmp_path / name) for name in names]
    command = ["--engine", *engines[1:], "--reference", engines[0], "--prompts", str(tmp_path / "prompts.txt")]
    assert evaluate([*command, "--costs", str(costs), "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["engines"]
    assert {r["policy"]: r["predicted_over_measured"] for r in found if not 0.85 <= r["predicted_over_measured"] <= 1.15} == {}
