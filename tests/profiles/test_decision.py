"""How an image picks its rung: the released models' predictions, features recomputed another way, every refusal."""

from __future__ import annotations

import cmath
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import golden_folder
from small_model import small_profile
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.decision import Decision, LinearModel, detail_features, entropy_features, thresholds
from toprovar.profiles.errors import ScheduleError
from toprovar.profiles.model import load_profile
from toprovar.profiles.schedule import Schedule
from toprovar.profiles.skipvar import skipvar_models
from torch.nn import functional as F

RECORDED = golden_folder().parent / "data" / "skipvar_decision_models.json"


def _recorded() -> list[Any]:
    """The released models with scikit-learn's predictions: name, kind, what is recorded."""
    if not RECORDED.exists():
        reason = f"no {RECORDED}; set TOPROVAR_GOLDEN to the golden folder that lies beside `data`"
        return [pytest.param("84", "skip", None, marks=pytest.mark.skip(reason=reason))]
    content = json.loads(RECORDED.read_text())
    names = [name for name in content if not name.startswith("_")]
    return [
        pytest.param(name.removeprefix("decision_model_ssim_").replace("_diff_only", "-diff"), kind, content[name][kind])
        for name in names
        for kind in ("skip", "uncond")
    ]


@pytest.mark.parametrize(("name", "kind", "recorded"), _recorded())
def test_predictions_of_the_released_models(name: str, kind: str, recorded: dict[str, Any]) -> None:
    decision = baseline(f"skipvar-{name}", load_profile("infinity-2b")).decision
    assert decision is not None
    model = decision.models[0 if kind == "skip" else 1]
    inputs = np.array([[*row, 0.0][:2] for row in recorded["test_inputs"]])
    names = [model.rungs[found] for found in model.classes(inputs)]
    label, whole = ("skip", None) if kind == "skip" else ("noguide", "dense")
    assert names == [f"{label}-{found}" if found else whole for found in recorded["test_predictions_sklearn"]]


def test_all_released_models_ship() -> None:
    assert skipvar_models() == ("84", "84-diff", "86", "88")
    with pytest.raises(ScheduleError, match="the decision models are 84, 84-diff, 86, 88"):
        baseline("skipvar-99", small_profile())


def test_released_indices_at_thirteen_scales() -> None:
    """Decided after scale 9, seen at the size of scale 4; classes 1 to 3 concern the last three scales."""
    schedule = baseline("skipvar-86", load_profile("infinity-2b"))
    assert schedule.decision is not None
    assert (schedule.decision.scale, schedule.decision.view) == (9, 4)
    paths = zip(schedule.rungs, schedule.paths, strict=True)
    ran = {rung.name: [(rule.run, rule.guidance) for rule in path.scales[10:]] for rung, path in paths}
    whole, left_out, unguided = (True, True), (False, True), (True, False)
    assert ran == {
        "dense": [whole, whole, whole],
        "noguide-1": [whole, whole, unguided],
        "noguide-2": [whole, unguided, unguided],
        "noguide-3": [unguided, unguided, unguided],
        "skip-1": [whole, whole, left_out],
        "skip-2": [whole, left_out, left_out],
        "skip-3": [left_out, left_out, left_out],
    }


def test_default_model_never_leaves_an_image_whole() -> None:
    """The second model of 84 was fitted without the class 0."""
    assert "dense" not in [rung.name for rung in baseline("skipvar", load_profile("infinity-2b")).rungs]


@pytest.mark.parametrize(("budget", "scale", "view"), [("0.06M", 3, 2), ("0.25M", 6, 3), ("0.60M", 8, 4), ("1M", 9, 4)])
def test_other_numbers_of_scales(budget: str, scale: int, view: int) -> None:
    decision = baseline("skipvar", load_profile("infinity-2b").with_options(pixel_budget=budget)).decision
    assert decision is not None
    assert (decision.scale, decision.view) == (scale, view)


def test_without_guidance_the_second_model_is_not_asked() -> None:
    schedule = baseline("skipvar", small_profile().with_options(cfg=1.0))
    assert [rung.name for rung in schedule.rungs] == ["dense", "skip-1", "skip-2", "skip-3"]
    assert schedule.decision is not None
    assert len(schedule.decision.models) == 1


@pytest.mark.parametrize("size", [(16, 16), (12, 17), (9, 6)])
def test_detail_features_by_hand(size: tuple[int, int]) -> None:
    """Sobel by convolution, the spectrum by the sum that defines it."""
    rng = np.random.default_rng(0)
    old, new = rng.uniform(-1, 1, (2, 2, 3, *size))
    found = detail_features(old, new)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)

    def magnitude(image: np.ndarray[Any, Any]) -> torch.Tensor:
        gray = torch.from_numpy(image).mean(dim=0)[None, None]
        x, y = (F.conv2d(gray, k[None, None], padding=1) for k in (kernel, kernel.T))
        return (x**2 + y**2).sqrt()

    h, w = size
    for index in range(2):
        edges = float((magnitude(new[index]) - magnitude(old[index])).abs().mean())
        high = _high_frequencies(new[index].mean(axis=0), h, w)
        np.testing.assert_allclose(found[index], [edges, high], rtol=1e-9)


def _high_frequencies(gray: np.ndarray[Any, Any], h: int, w: int) -> float:
    total = outside = 0.0
    for u in range(h):
        for v in range(w):
            amplitude = abs(
                sum(gray[i, j] * cmath.exp(-2j * math.pi * (u * i / h + v * j / w)) for i in range(h) for j in range(w))
            )
            # the zero frequency lies at (h // 2, w // 2) of the shifted spectrum
            row, column = (u + h // 2) % h - h // 2, (v + w // 2) % w - w // 2
            total += amplitude
            outside += amplitude * (math.hypot(row, column) > int(0.4 * min(h, w) / 2))
    return outside / (total + 1e-6)


def test_entropy_features_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0], dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(entropy_features(values), [[3.0, math.sqrt(14 / 4), 0.5]])


def test_thresholds_are_intervals() -> None:
    model = thresholds(0, (1.0, 2.5), ("low", "middle", "high"))
    features = np.array([[x, 9.0, 9.0] for x in (-4.0, 0.9, 1.1, 2.4, 2.6, 99.0)])
    decision = Decision(scale=3, features="entropy", models=(model,))
    assert decision.pick(features) == ("low", "low", "middle", "middle", "high", "high")


def test_next_model_is_asked_where_the_first_leaves_it_open() -> None:
    first = LinearModel(mean=(0, 0, 0), scale=(1, 1, 1), coef=((1, 0, 0), (-1, 0, 0)), intercept=(0, 0), rungs=(None, "a"))
    second = thresholds(1, (0.0,), ("b", "c"))
    features = np.array([[-1.0, 5, 0], [1, -1, 0], [1, 1, 0]])
    assert Decision(scale=1, features="entropy", models=(first, second)).pick(features) == ("a", "b", "c")


MODEL = {"mean": [0, 0, 0], "scale": [1, 1, 1], "coef": [[0, 0, 0]] * 2, "intercept": [0, 0], "rungs": ["whole", "short"]}


def _adaptive(change: Any) -> dict[str, Any]:
    data = dense(small_profile()).to_dict()
    tail = [{**rule, "run": False} for rule in data["scales"][4:]]
    data["rungs"] = [{"name": "whole"}, {"name": "short", "scales": tail}]
    data["decision"] = {"scale": 3, "features": "entropy", "models": [dict(MODEL)]}
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("rungs"), "two or more of different names, with a decision"),
        (lambda d: d.pop("decision"), "with a decision, got"),
        (lambda d: d["rungs"][1].update(name="whole"), "different names"),
        (lambda d: d["rungs"][1]["scales"].pop(), r"rungs\[1\]: short must list the 3 scales after scale 3"),
        (lambda d: d["rungs"][0].update(scales=d["rungs"][1]["scales"]), r"rungs\[0\]: whole must list .* the first rung none"),
        (lambda d: d["rungs"][1]["scales"][0].update(scale=9), r"rungs\[1\]: scale 4: is numbered 9"),
        (lambda d: d["rungs"][1].update(nam="x"), r"rungs\[1\]: unknown keys \['nam'\]"),
        (lambda d: d["rungs"][1]["scales"][2].update(kep=3), r"rungs\[1\].scales\[2\]: unknown keys \['kep'\]"),
        (lambda d: d["decision"].update(scale=6), "scale must be 1 to 5 and run, got 6"),
        (lambda d: d["scales"][3].update(skip_layers=[1]), "scale 3 leaves no whole entropy map of layer 1"),
        (lambda d: d["decision"].update(features="colour"), "features must be one of"),
        (lambda d: d["decision"].update(features="detail"), "view belongs to the features 'detail'"),
        (lambda d: d["decision"].update(features="detail", view=2), "features 'detail' are 2 numbers"),
        (lambda d: d["decision"].update(models=[]), "every model must take so many"),
        (lambda d: d["decision"]["models"][0].update(rungs=["whole", None]), "the last model must name a rung"),
        (lambda d: d["decision"]["models"][0].update(rungs=["whole", "long"]), r"picks rungs \['long'\]; the rungs are"),
        (lambda d: d["decision"]["models"][0].update(scale=[1, 1, 0]), r"decision.models\[0\]: scale must be 3 numbers > 0"),
        (lambda d: d["decision"]["models"][0].update(intercept=[1]), "a row for each of the 2 rungs"),
    ],
)
def test_refusals_name_the_place(change: Any, message: str) -> None:
    Schedule.from_dict(_adaptive(lambda _: None))
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_dict(_adaptive(change))


def test_limits_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ScheduleError, match="3 rungs take 2 ascending limits"):
        thresholds(0, (2.0, 1.0), ("a", "b", "c"))


def test_round_trip_and_digest(tmp_path: Path) -> None:
    schedule = baseline("skipvar", load_profile("tiny"))
    schedule.save(tmp_path / "s.yaml")
    assert Schedule.load(tmp_path / "s.yaml") == schedule
    assert schedule.digest() != baseline("skipvar-88", load_profile("tiny")).digest()


def test_schedules_without_rungs_are_written_and_hashed_as_ever() -> None:
    """The digest of the dense tiny schedule before there were rungs."""
    data = dense(load_profile("tiny")).to_dict()
    assert {"rungs", "decision"}.isdisjoint(data)
    assert dense(load_profile("tiny")).digest() == DENSE_TINY


DENSE_TINY = "3d9f05d82c9edd4d5a8a84c03c910f967fd80b49e452254988a67d9f29d19ada"
