"""The schedule: round trip, every refusal, and what it means for each scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from small_model import small_profile
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.model import load_profile
from toprovar.profiles.plan import plan_scales, schedule_flops
from toprovar.profiles.schedule import ScaleRule, Schedule, TokenRule
from toprovar.profiles.tables import schedule_table


def pruned(**tokens: object) -> Schedule:
    """The small model with its last scale pruned."""
    base = dense(small_profile())
    rule = TokenRule(**{"kept": (128, 128), **tokens})  # type: ignore[arg-type]
    return replace(base, policy="test", scales=(*base.scales[:-1], replace(base.scales[-1], tokens=rule)))


@pytest.mark.parametrize("policy", ["dense", "skip-2", "noguide-3"])
def test_round_trip(policy: str, tmp_path: Path) -> None:
    schedule = replace(baseline(policy, load_profile("tiny")), provenance={"prompts": {"sha256": "ab"}, "seed": 1})
    schedule.save(tmp_path / "s.yaml")
    assert Schedule.load(tmp_path / "s.yaml") == schedule


def test_round_trip_with_tokens(tmp_path: Path) -> None:
    schedule = pruned(kept=(100, 200), fill="cache", cache_scale=5)
    schedule.save(tmp_path / "s.yaml")
    assert Schedule.load(tmp_path / "s.yaml") == schedule


def test_digest_ignores_provenance_and_sees_what_runs() -> None:
    base = dense(small_profile())
    assert replace(base, provenance={"a": 1}, policy="x").digest() == base.digest()
    assert baseline("skip-1", small_profile()).digest() != base.digest()


def _with(change: object) -> dict[str, object]:
    data = dense(small_profile()).to_dict()
    change(data)  # type: ignore[operator]
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda d: d["scales"][2].update(kep=3), r"scales\[2\]: unknown keys \['kep'\]"),
        (lambda d: d["scales"][0].update(run=False), "scale 0 must run"),
        (lambda d: d["scales"][3].update(guidance=False), "guidance cannot return"),
        (lambda d: d["scales"][3].update(skip_layers=[9]), "skip_layers must be 0 to 1"),
        (lambda d: d["scales"][3].update(reuse_layers=[9]), "reuse_layers must be 0 to 1"),
        (lambda d: d["scales"][3].update(skip_layers=[1], reuse_layers=[1]), "in skip_layers and in reuse_layers"),
        (lambda d: d["scales"][0].update(reuse_layers=[1]), "ran whole at no earlier scale"),
        (lambda d: d["scales"][3].update(guidance_reuse=True), "set guidance: false"),
        (lambda d: d["scales"][3].update(skip_layers=[0, 1]), "use run: false"),
        (lambda d: d["scales"][1].update(tokens={"kept": [9, 9]}), "keeps 9 of 4 tokens"),
        (lambda d: d["scales"][6].update(tokens={"kept": [9]}), "kept lists 1 layers, the model has 2"),
        (lambda d: d["scales"][6].update(tokens={"kept": [9, 8]}), "same tokens in every layer"),
        (lambda d: d["scales"][6].update(tokens={"kept": [9, 9], "fill": "drop"}), "fill must be one of"),
        (lambda d: d["scales"][6].update(tokens={"kept": [9, 9], "score": "best"}), "score must be one of"),
        (lambda d: d["scales"][6].update(tokens={"kept": [9, 9], "fill": "cache"}), "cache_scale belongs to"),
        (
            lambda d: d["scales"][6].update(tokens={"kept": [9, 9], "fill": "cache", "cache_scale": 6}),
            "must be an earlier scale",
        ),
        (lambda d: d.update(entropy_layer=2), "entropy_layer must be 0 to 1"),
        (lambda d: d.pop("layers"), r"missing keys \['layers'\]"),
        (lambda d: d.update(scales=[]), "no scale runs"),
    ],
)
def test_refusals_name_the_place(change: object, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(_with(change))


def test_format_and_yaml_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("format: 2\n")
    with pytest.raises(ScheduleError, match=r"bad.yaml: format is 2"):
        Schedule.load(path)
    path.write_text("a: [1\n")
    with pytest.raises(ScheduleError, match="not valid YAML"):
        Schedule.load(path)
    with pytest.raises(ScheduleError, match="no such file"):
        Schedule.load(tmp_path / "none.yaml")
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ScheduleError, match="not valid YAML"):
        Schedule.load(path)


def test_model_mismatch_is_told() -> None:
    with pytest.raises(ScheduleError, match="schedule has 2 layers, model tiny 8"):
        dense(small_profile()).check_model(load_profile("tiny"))
    with pytest.raises(ScheduleError, match="without guidance"):
        dense(small_profile()).check_model(small_profile().with_options(cfg=1.0))


@pytest.mark.parametrize("policy", ["skip-0", "skip-7", "noguide-9", "fast", "skip-x"])
def test_unknown_policies(policy: str) -> None:
    with pytest.raises(ScheduleError):
        baseline(policy, small_profile())


def test_plan_of_dense() -> None:
    plans = plan_scales(dense(small_profile()))
    counts = [h * w for h, w in small_profile().sizes]
    assert [plan.offset for plan in plans] == [sum(counts[:i]) for i in range(7)]
    assert [plan.past for plan in plans] == [(sum(counts[:i]),) * 2 for i in range(7)]
    assert [plan.last for plan in plans] == [False] * 6 + [True]
    assert not any(plan.writes_entropy or plan.writes_delta or plan.drops_guidance for plan in plans)


def test_plan_of_a_pruned_scale() -> None:
    plans = plan_scales(pruned(kept=(100, 256), fill="cache", cache_scale=5))
    assert plans[-1].delta_layers == (0,)
    assert plans[5].writes_delta == (0,)
    assert plans[-1].entropy_from == 5
    assert plans[5].writes_entropy
    assert not plans[4].writes_entropy
    assert plans[-1].sampled == 256
    assert plan_scales(pruned())[-1].sampled == 128


def test_plan_of_dropped_guidance_and_skipped_layers() -> None:
    base = baseline("noguide-2", small_profile())
    rules = list(base.scales)
    rules[4] = replace(rules[4], skip_layers=(1,))
    plans = plan_scales(replace(base, scales=tuple(rules)))
    assert [plan.drops_guidance for plan in plans] == [False] * 5 + [True, False]
    assert plans[4].layers == (0,)
    assert plans[5].past == (121, 57)


def test_flops_by_hand() -> None:
    """One layer, one token, one row: 28 C^2 with a 4x MLP, and attention to one key and the text."""
    profile = small_profile()
    config = replace(profile.transformer, depth=1, block_chunks=1, mlp_ratio=4.0)
    profile = replace(profile, transformer=config)
    scale = (ScaleRule(scale=0, size=(1, 1)),)
    schedule = Schedule(model="small", policy="x", layers=1, guided=True, scales=scale)
    width, bits = 64, 16
    expected = 28 * width**2 + 4 * width * (1 + 40) + 4 * width * bits + 2 * width * bits
    assert schedule_flops(schedule, profile) == 2 * expected


def test_skipping_the_last_scales_saves_what_the_field_reports() -> None:
    """The last two of Infinity's 13 scales hold 61 % of the tokens."""
    profile = load_profile("infinity-2b")
    speedup = schedule_flops(dense(profile), profile) / schedule_flops(baseline("skip-2", profile), profile)
    assert 2.55 < speedup < 3.5


def test_table_shows_every_scale() -> None:
    text = schedule_table(pruned(), small_profile())
    assert text.splitlines()[0].startswith("small: test")
    assert sum("x" in line and line[:1].isdigit() for line in text.splitlines()) == 7
    assert "hold" in text
    assert "128" in text


def test_schedule_yaml_is_plain(tmp_path: Path) -> None:
    pruned().save(tmp_path / "s.yaml")
    data = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert data["format"] == 1
    assert data["scales"][6]["tokens"] == {
        "kept": [128, 128],
        "score": "entropy",
        "fill": "hold",
        "cache_scale": None,
    }
