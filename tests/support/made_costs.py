"""A cost table of times that follow a formula, for the small model."""

from __future__ import annotations

from small_model import small_profile
from toprovar.profiles.baselines import dense
from toprovar.profiles.costs import CostTable, DecisionTime, LayerTime, ScaleTime
from toprovar.profiles.plan import plan_scales

PROFILE = small_profile()
DENSE_PAST = [plan.past[0] for plan in plan_scales(dense(PROFILE))]


def layer_ms(scale: int, rows: int, tokens: int, past: int) -> float:
    """Linear in tokens and, at given tokens, in cached keys: what the table's lines must meet exactly."""
    return rows * (0.5 + 0.01 * tokens * (1 + 0.001 * past)) + 0.1 * scale


def made_table() -> CostTable:
    """Of times that follow a formula."""
    layers, scales = [], []
    for scale, (h, w) in enumerate(PROFILE.sizes):
        for rows in (1, 2):
            scales.append(ScaleTime(scale=scale, rows=rows, ms=1.0 + rows))
            for tokens in sorted({1, h * w // 3, h * w} - {0}):
                for past in sorted({0, DENSE_PAST[scale]}):
                    ms = layer_ms(scale, rows, tokens, past)
                    layers.append(LayerTime(scale=scale, rows=rows, tokens=tokens, past=past, ms=ms))
    return CostTable(
        target="onnx", device="made", precision="fp32", batch=1, model="small", versions={"onnxruntime": "1"},
        condition_ms=3.0, decoder_ms=20.0, layers=tuple(layers), scales=tuple(scales),
        decisions=(
            DecisionTime(features="detail", tokens=50, ms=7.0),
            DecisionTime(features="entropy", tokens=20, ms=2.0),
            DecisionTime(features="entropy", tokens=40, ms=3.0),
        ),
    )  # fmt: skip
