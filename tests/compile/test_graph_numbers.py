"""Scales of kinds that the fp16 bundle of `test_plans.py` lacks, each alone in fp16: ONNX Runtime computes what torch does.

The others, and the text encoder, the conditioning and the decoder, are held to torch there in fp16 and in `test_bundle.py` in
fp32, by the same comparison.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from graph_numbers import SEEDS, compare, drawn
from small_model import small_profile
from toprovar.compile.graphs import export_scale
from toprovar.compile.weight_store import WeightStore, place
from toprovar.models.family import build_steps
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.profiles.baselines import dense
from toprovar.profiles.manifest import WEIGHTS
from toprovar.profiles.schedule import Schedule, TokenRule

# of keys and values behind tokens chosen by distance, which nearly tie in a model of random weights: at most 1.6 % over
# eight pairs of seeds; doubled
CHOSEN_ANEW = 0.032


def schedule() -> Schedule:
    """Scale 5: tokens chosen before each branch, with guidance; scale 6: all tokens without guidance, a layer skipped."""
    base = dense(small_profile())
    rules = [replace(rule, run=rule.scale in (0, 4, 5, 6)) for rule in base.scales]
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(144, 60), score="distance", fill="branch", cache_scale=4))
    rules[6] = replace(rules[6], guidance=False, skip_layers=(0,))
    return replace(base, policy="others", scales=tuple(rules))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(small_profile(), WeightOptions(weights="random"), torch.float16)


@pytest.fixture(scope="module")
def images(model: LoadedModel) -> Any:
    return drawn(model, schedule())


@pytest.mark.parametrize(("scale", "chosen_anew"), [(5, CHOSEN_ANEW), (6, 0.0)], ids=["branches", "unguided"])
def test_scale_computes_what_torch_does(
    model: LoadedModel, images: Any, scale: int, chosen_anew: float, tmp_path: Path
) -> None:
    step = next(step for step in build_steps(model, schedule()) if step.plan.scale == scale)
    store = WeightStore()
    store.register("transformer", model.transformer)
    exported = export_scale(step, store)
    place(exported.proto, exported.weights, store.save(tmp_path / WEIGHTS))
    (tmp_path / "scale.onnx").write_bytes(exported.proto.SerializeToString())
    session = ort.InferenceSession(str(tmp_path / "scale.onnx"), providers=["CPUExecutionProvider"])
    given, expected = images[f"scale {scale}"]
    assert given["k.1"].dtype == np.float16
    assert len(given["noise"]) == len(SEEDS)
    found = session.run(list(exported.outputs), {name: given[name] for name in exported.inputs})
    names = (name.removesuffix(".out") for name in exported.outputs)
    compare(dict(zip(names, found, strict=True)), expected, "fp16", chosen_anew)
