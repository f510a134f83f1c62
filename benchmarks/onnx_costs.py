"""Measure the cost table of the `onnx` target on this CPU: what a layer takes in ONNX Runtime, scale by scale.

    python -m toprovar.benchmarks.onnx_costs --model tiny --save-costs costs.json
    calibrate --prompts prompts.txt --policy auto --target-latency-ms 500 --costs costs.json

The graphs are those of a bundle, of made-up plans: each scale with all, half and a tenth of its tokens, with all cached keys
and with none, with one row an image and with two. A layer is told from what surrounds it by leaving half of the layers out.
All graphs of a scale run in turn, so that drifts of the machine fall on all alike; medians are kept. Run it on a quiet
machine: a table is as good as the quiet it was measured in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ..profiles.baselines import dense
from ..profiles.console import add_model_arguments, chosen_profile, run_command
from ..profiles.costs import CostTable, LayerTime, ScaleTime
from ..profiles.errors import ToprovarError
from ..profiles.plan import TEXT_TOKENS, ScalePlan, plan_scales
from ..profiles.schedule import TokenRule
from .cost_lines import shown_costs
from .decision_probes import decision_probes

SHARES = (0.5, 0.1)
"""Of a scale's tokens, beside all of them; fewer than the least are priced as it."""
PRUNED_TOKENS_MIN = 16
"""Smaller scales are timed whole only: no policy prunes them."""
LAYERS_MAX = 8
"""Layers of the timed graphs; those of a deeper model are taken to be as fast."""
SPREAD_MAX = 0.15
"""Of quiet times around their medians; two idle cores show 0.05 to 0.1."""
WHOLE, HALF, GUIDED = "whole", "half of the layers", "guided"


def probes(plan: ScalePlan) -> dict[str, ScalePlan]:
    """The graphs of one scale by name, from its dense plan; `guided` only where the model is guided."""
    full, past = min(len(plan.kept), LAYERS_MAX), plan.past[0]
    half = max(1, full // 2)
    single = replace(plan, guidance=False, drops_guidance=False)
    counts = {max(1, round(share * plan.count)) for share in SHARES} if plan.count >= PRUNED_TOKENS_MIN else set()
    found = {WHOLE: _probe(single, full, plan.count, past), HALF: _probe(single, half, plan.count, past)}
    found |= {f"{tokens} tokens": _probe(single, half, tokens, past) for tokens in sorted(counts)}
    if past:
        ends = sorted({plan.count, min(counts, default=plan.count)})
        found |= {f"{tokens} tokens, no keys": _probe(single, half, tokens, 0) for tokens in ends}
    if plan.guidance:
        found[GUIDED] = _probe(plan, full, plan.count, past)
    return found


def _probe(plan: ScalePlan, layers: int, tokens: int, past: int) -> ScalePlan:
    """The scale with its first layers only, some of its tokens and so many cached keys."""
    depth = len(plan.kept)
    pruned = tokens < plan.count
    return replace(
        plan,
        kept=tuple(tokens if layer < layers else 0 for layer in range(depth)),
        layers=tuple(range(layers)),
        past=(past,) * depth,
        tokens=TokenRule(kept=(tokens,) * depth) if pruned else None,
        entropy_from=plan.scale - 1 if pruned else None,
    )


def runs(plans: Mapping[str, ScalePlan], batch: int) -> list[tuple[str, int]]:
    """What takes turns: two rows an image are twice the batch to a layer; `guided` doubles its batch itself."""
    single = [name for name in plans if name != GUIDED]
    doubled = [(name, 2 * batch) for name in single] + [(GUIDED, batch)] if GUIDED in plans else []
    return [*((name, batch) for name in single), *doubled]


def times_of(
    plans: Mapping[str, ScalePlan], ms: Mapping[tuple[str, int], float], batch: int
) -> tuple[list[LayerTime], list[ScaleTime]]:
    """From times of whole graphs to those of a layer and of its surroundings.

    Args:
        plans: Of one scale, as of `probes`.
        ms: By (name, batch), as of `runs`.
        batch: Images a call.
    """
    whole, half, scale = len(plans[WHOLE].layers), len(plans[HALF].layers), plans[WHOLE].scale
    layers, scales = [], []
    for rows in (1, 2) if GUIDED in plans else (1,):
        at = {name: ms[name, rows * batch] for name in plans if name != GUIDED}
        # the line through both at no layers; noise must not make it less than nothing
        beside = at[WHOLE] - whole * (at[WHOLE] - at[HALF]) / (whole - half) if whole > half else 0.0
        beside = min(max(beside, 0.0), at[WHOLE])
        for name, plan in plans.items():
            if name in (HALF, GUIDED):
                continue
            one = max(0.0, (at[name] - beside) / len(plan.layers))
            layers.append(LayerTime(scale=scale, rows=rows, tokens=plan.kept[0], past=plan.past[0], ms=one))
        if rows == 2:
            # a layer does not see whether rows are guided; embedding, head and sampling do
            beside += ms[GUIDED, batch] - at[WHOLE]
        scales.append(ScaleTime(scale=scale, rows=rows, ms=beside))
    return layers, scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save-costs", type=Path, default=Path("costs.json"), help="file of the table (default: costs.json)")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each graph (default: 9)")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default: 1)")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of `--weights random`")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export, time, save, print."""
    profile = chosen_profile(args)
    for name in ("rounds", "batch"):
        if getattr(args, name) < 1:
            raise ToprovarError(f"--{name} must be at least 1, got {getattr(args, name)}")
    from tqdm import tqdm

    from ..models.load import WeightOptions, load_model
    from .graph_times import GraphTimes

    options = WeightOptions(
        weights=args.weights, vae=args.vae, text_encoder=args.text_encoder, revision=args.revision, seed=args.seed
    )
    model = load_model(profile, options)
    text = min(TEXT_TOKENS, profile.text.max_length)
    layers: list[LayerTime] = []
    scales: list[ScaleTime] = []
    with tempfile.TemporaryDirectory(prefix="toprovar-costs-") as folder:
        timer = GraphTimes(model, Path(folder), args.threads, text, args.rounds)
        fixed = timer.fixed(args.batch, 2 if profile.sampling.guided else 1)
        decisions = [timer.decision(schedule, args.batch) for schedule in decision_probes(profile)]
        for plan in tqdm(plan_scales(dense(profile)), unit="scale", desc="onnx_costs", disable=None):
            plans = probes(plan)
            found = times_of(plans, timer.scale(plans, runs(plans, args.batch)), args.batch)
            layers += found[0]
            scales += found[1]
    (condition, decoder), threads = fixed.values(), args.threads or len(os.sched_getaffinity(0))
    costs = CostTable(
        target="onnx",
        device=f"{platform.machine()} CPU, {threads} threads",
        precision="fp32",
        batch=args.batch,
        model=profile.name,
        versions={"onnxruntime": version("onnxruntime")},
        condition_ms=condition,
        decoder_ms=decoder,
        layers=tuple(layers),
        scales=tuple(scales),
        decisions=tuple(decisions),
        notes={"rounds": args.rounds, "text_tokens": text, "threads": threads, "spread": round(timer.spread, 3)},
    )
    costs.save(args.save_costs)
    if timer.spread > SPREAD_MAX:
        warning = (
            f"times vary by {timer.spread:.0%} around their medians, so predictions will be off; measure again when it is idle"
        )
        print(f"onnx_costs: warning: the machine is not quiet: {warning}", file=sys.stderr)
    print(f"{shown_costs(costs)}; {args.save_costs}")
    told = {"costs": str(args.save_costs), "dense_ms": round(costs.predict(dense(profile)), 2), "points": len(costs.layers)}
    print(json.dumps(told))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("onnx_costs", add_arguments, run, "Measure what layers cost on ONNX Runtime.", argv)


if __name__ == "__main__":
    sys.exit(main())
