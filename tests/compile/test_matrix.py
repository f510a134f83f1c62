"""Family x policy x aspect x guidance x batch on the `onnx` target: ONNX Runtime equals torch, and no state survives.

Every family meets every policy with guidance on squares; every policy that needs none meets a family without it; Infinity's
upright and wide images meet the policies that `matrix_cases` names. On each bundle batches of 1, 2 and 4 run, and the first
request once more after others. Some bundles run as plans too, in the stand-in of TensorRT: the same images, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matrix_cases import PROMPTS, Case, cases, model_of, schedule_of
from plan_bundles import as_plans, opened
from toprovar.compile.bundle import build_bundle
from toprovar.profiles.errors import ScheduleError
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource
from torch_images import torch_images

SEEDS = (11, 12, 13, 14)
TOLERANCE = 1e-3  # of pixels in [-1, 1]


@pytest.mark.parametrize("case", [case for case in cases() if not case.refused], ids=str)
def test_engine_draws_as_torch_in_every_batch(case: Case, tmp_path: Path) -> None:
    model = model_of(case)
    schedule = schedule_of(case, model.profile)
    build_bundle(model, schedule, tmp_path / "engine", model.text_source, lambda _: None)
    engine, prompts = Engine(tmp_path / "engine", threads=1), PROMPTS[case.family]
    texts = TextSource(engine)
    whole = texts.encode(prompts)
    expected = torch_images(model, schedule, torch.from_numpy(whole.text), torch.from_numpy(whole.lengths), SEEDS)
    height, width = model.profile.image_size
    assert expected.shape == (4, 3, height, width)
    first = None
    for batch in (1, 4, 2, 1):
        text = texts.encode(prompts[:batch])
        found = engine.generate(text.text, text.lengths, SEEDS[:batch]).pixels
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=TOLERANCE, err_msg=f"batch {batch}")
        if batch == 1:
            first = found if first is None else first
            assert np.array_equal(found, first), "another request left something behind"
    if case.planned:
        plans, _ = opened(as_plans(tmp_path / "engine", tmp_path / "plans"))
        asked = (text.text, text.lengths, SEEDS[:1])
        assert np.array_equal(plans.generate(*asked).pixels, first)
        two = texts.encode(prompts[:2])
        asked = (two.text, two.lengths, SEEDS[:2])
        assert np.array_equal(plans.generate(*asked).pixels, engine.generate(*asked).pixels)


@pytest.mark.parametrize("case", [case for case in cases() if case.refused], ids=str)
def test_what_a_model_cannot_have_is_refused_in_one_line(case: Case) -> None:
    with pytest.raises(ScheduleError, match=r"too few|without guidance") as caught:
        schedule_of(case, model_of(case).profile)
    assert "\n" not in str(caught.value)
