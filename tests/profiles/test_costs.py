"""Cost tables: sums of measured times, straight lines between points, and every gap named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_costs import layer_ms, made_table
from small_model import everything_at_once, small_profile
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.costs import CostTable, LayerTime
from toprovar.profiles.errors import CostError
from toprovar.profiles.plan import plan_scales

PROFILE = small_profile()


@pytest.mark.parametrize("name", ["dense", "skip-1", "noguide-2", "everything"])
def test_prediction_is_the_sum_of_what_runs(name: str) -> None:
    schedule = everything_at_once() if name == "everything" else baseline(name, PROFILE)
    expected = 23.0
    for plan in plan_scales(schedule):
        expected += 1.0 + plan.rows
        expected += sum(layer_ms(plan.scale, plan.rows, plan.kept[n], plan.past[n]) for n in plan.layers)
    assert made_table().predict(schedule) == pytest.approx(expected, rel=1e-12)


def test_rungs_are_predicted_by_the_slowest() -> None:
    schedule, table = baseline("skipvar", PROFILE), made_table()
    assert table.predict(schedule) == 7.0 + max(table.predict(path) for path in schedule.paths)
    assert len({table.predict(path) for path in schedule.paths}) == len(schedule.rungs)


@pytest.mark.parametrize(("tokens", "ms"), [(1, 2.0), (20, 2.0), (30, 2.5), (90, 3.0)])
def test_picking_is_linear_in_the_tokens_before_and_level_beyond(tokens: int, ms: float) -> None:
    assert made_table().decision_ms("entropy", tokens) == ms


def test_a_table_without_picking_prices_no_rungs(tmp_path: Path) -> None:
    """Tables of older versions have none: what has no rungs is priced as before."""
    path, data = tmp_path / "costs.json", json.loads(made_table().to_json())
    del data["decisions"]
    path.write_text(json.dumps(data))
    table = CostTable.load(path)
    assert table.predict(dense(PROFILE)) == made_table().predict(dense(PROFILE))
    with pytest.raises(CostError, match="picking a rung by detail was not measured"):
        table.predict(baseline("skipvar", PROFILE))


def test_straight_lines_between_points_and_the_fewest_keys_below_them() -> None:
    table = replace(
        made_table(),
        layers=tuple(
            LayerTime(scale=3, rows=1, tokens=t, past=p, ms=ms)
            for t, p, ms in ((10, 100, 1.0), (20, 100, 3.0), (20, 200, 5.0), (40, 200, 9.0), (40, 100, 7.0))
        ),
    )
    assert table.layer_ms(3, 1, 15, 100) == 2.0
    assert table.layer_ms(3, 1, 30, 100) == 5.0
    assert table.layer_ms(3, 1, 30, 150) == 6.0
    # fewer cached keys than any measured: as slow as the fewest
    assert table.layer_ms(3, 1, 30, 7) == 5.0
    # fewer tokens than any measured: as slow as the fewest
    assert table.layer_ms(3, 1, 9, 100) == 1.0
    assert table.layer_ms(3, 1, 1, 150) == 3.0
    # the points at 200 keys do not reach 15 tokens, so nothing says what more than 100 keys cost there
    with pytest.raises(CostError, match="scale 3, 1 rows an image, 15 tokens, 101 cached keys"):
        table.layer_ms(3, 1, 15, 101)


@pytest.mark.parametrize(
    ("tokens", "past", "rows"),
    [pytest.param(9, 100, 1, id="few"), pytest.param(21, 100, 1, id="many"), pytest.param(10, 100, 2, id="rows")],
)
def test_a_missing_point_is_named(tokens: int, past: int, rows: int) -> None:
    points = tuple(LayerTime(scale=3, rows=1, tokens=t, past=100, ms=1.0) for t in ((10,) if tokens < 10 else (10, 20)))
    table = replace(made_table(), layers=points)
    with pytest.raises(CostError, match=rf"small on onnx: no measured .* {rows} rows an image, {tokens} tokens, {past} cached"):
        table.layer_ms(3, rows, tokens, past)


def test_a_missing_scale_is_named() -> None:
    table = replace(made_table(), scales=tuple(s for s in made_table().scales if (s.scale, s.rows) != (4, 2)))
    with pytest.raises(CostError, match="scale 4 with 2 rows an image was not measured"):
        table.predict(dense(PROFILE))


def test_another_model_is_refused() -> None:
    with pytest.raises(CostError, match="of model tiny, the schedule of small"):
        replace(made_table(), model="tiny").predict(dense(PROFILE))


def test_round_trip(tmp_path: Path) -> None:
    table, path = made_table(), tmp_path / "costs.json"
    table.save(path)
    assert CostTable.load(path) == table
    assert json.loads(path.read_text())["format"] == 1
    assert CostTable.load(path).to_json() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"format": 2}, "reads cost tables of format 1", id="format"),
        pytest.param({"colour": 1}, r"costs.json: unknown keys \['colour'\]", id="key"),
        pytest.param({"scales": [{"scale": 0, "rows": 1}]}, r"scales\[0\]: missing keys \['ms'\]", id="entry"),
        pytest.param({"layers": 5}, "layers must be a list, got int", id="list"),
        pytest.param({"decoder_ms": float("nan")}, "no finite number", id="nan"),
        pytest.param({"batch": 0}, "batch must be a whole number >= 1, got 0", id="batch"),
        pytest.param(
            {"scales": [{"scale": 0, "rows": 1, "ms": 1.0}] * 2}, r"scale, rows \(0, 1\) stands there twice", id="twice"
        ),
    ],
)
def test_damaged_tables_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(json.loads(made_table().to_json()) | change))
    with pytest.raises(CostError, match=message):
        CostTable.load(path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CostError, match="no such cost table"):
        CostTable.load(tmp_path / "none.json")
    (tmp_path / "costs.json").write_text("{")
    with pytest.raises(CostError, match="is no cost table"):
        CostTable.load(tmp_path / "costs.json")
