"""`toprovar bench`: eager, compiled dense and every schedule given, in one run, on one GPU.

    toprovar bench --model infinity-2b --weights random --policy dense skip-1 skip-2 noguide-3 fastvar
    toprovar bench --model infinity-2b --weights random --policy dense --save-costs costs.json

All candidates take turns; each figure is the median of the replays with the least and the most. An image is timed from text
features to pixels; the text encoder, whose time does not depend on the schedule, stands apart. The last line of stdout is the
whole result as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...profiles.baselines import FIXED_NAMES, baseline, dense
from ...profiles.console import add_model_arguments, chosen_profile, run_command
from ...profiles.errors import ToprovarError
from ...profiles.model import ModelProfile
from ...profiles.plan import scale_flops, schedule_flops
from ...profiles.schedule import Schedule
from ...profiles.tables import counted, table

if TYPE_CHECKING:
    from ...models.load import LoadedModel
    from .programs import Times

PEAKS = {
    "NVIDIA H100 80GB HBM3": (3.35e12, 989e12), "NVIDIA H200": (4.8e12, 989e12), "NVIDIA A100-SXM4-80GB": (2.04e12, 312e12),
}  # fmt: skip
"""Bytes of memory and dense bf16 FLOPs a second, by the names that GPUs give themselves; from NVIDIA's data sheets."""
EAGER = "eager"
WORST_RATIO = 2.0
"""Of the fused blocks' error over that of the eager ones, both in the model's precision, against fp32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", nargs="+", default=["dense"], help=f"schedules by name: {FIXED_NAMES}")
    parser.add_argument("--schedule", nargs="+", type=Path, default=[], help="schedule.yaml files beside them")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default: 1)")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16", help="(default: bf16)")
    parser.add_argument("--text-tokens", type=int, default=40, help="words of the prompt (default: 40)")
    parser.add_argument("--runs", type=int, default=20, help="timed replays of each (default: 20)")
    parser.add_argument("--no-eager", action="store_true", help="leave the eager module out")
    parser.add_argument("--save-costs", type=Path, help="measure the cost table of the target `cuda` and write it here")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, then one JSON line."""
    import torch

    if not torch.cuda.is_available():
        raise ToprovarError(
            "toprovar bench times the target `cuda`, and torch sees no GPU; run it where `nvidia-smi` names one"
        )
    profile = chosen_profile(args)
    schedules = _schedules(args, profile)
    if args.save_costs is not None and "dense" not in schedules:
        raise ToprovarError("--save-costs needs the dense image beside the others; add `dense` to --policy")
    from ...models.family import family_of
    from ...models.load import WeightOptions, load_model
    from ..cost_lines import shown_costs
    from ..cuda_timing import machine
    from .costs import cost_table
    from .gate import worst_ratio
    from .programs import Request, captured, eager, interleaved

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.precision]
    options = WeightOptions(weights=args.weights, vae=args.vae, text_encoder=args.text_encoder, revision=args.revision)
    model = load_model(profile, options, dtype, "cuda")
    found = machine()
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    ratio = worst_ratio(model)
    print(f"parity: error of the fused blocks {ratio:.2f} of the eager ones' (limit {WORST_RATIO:g})")
    if ratio > WORST_RATIO:
        raise ToprovarError("the fused blocks are less exact than they may be, so no times are printed; please report it")
    request = Request.make(model, args.batch, args.text_tokens)
    candidates = {} if args.no_eager else {EAGER: eager(model, dense(profile), request)}
    decode = family_of(profile).fast_decoder(model.decoder)
    for name, schedule in schedules.items():
        print(f"capturing {name}", file=sys.stderr)
        candidates[name] = captured(model, schedule, request, decode)
    whole = interleaved({name: candidate.run for name, candidate in candidates.items()}, args.runs)
    # those of one candidate at a time: they keep every state alive
    parts = {name: interleaved(candidate.parts(), args.runs) for name, candidate in candidates.items() if candidate.parts}
    peaks = {name: candidate.peak_gib for name, candidate in candidates.items()}
    print(_part_table(parts, floors_ms(model, next(iter(schedules.values())), args.batch, found["gpu"])))
    print(_whole_table(whole, peaks, schedules, profile))
    encoding = _encoding(model, args)
    if args.save_costs is not None:
        costs = cost_table(model, request, decode, candidates["dense"].run, parts["dense"], args.runs)
        costs.save(args.save_costs)
        print(f"{shown_costs(costs)}\ncosts     {args.save_costs}")
    result = {"machine": found, "model": profile.name, "precision": args.precision, "batch": args.batch, "runs": args.runs}
    result |= {"text_tokens": args.text_tokens, "parity_ratio": ratio, "peak_gib": peaks}
    result["text_encoder_ms"] = {name: asdict(times) for name, times in encoding.items()}
    result["whole_ms"] = {name: asdict(times) for name, times in whole.items()}
    result["parts_ms"] = {name: {part: asdict(t) for part, t in found.items()} for name, found in parts.items()}
    print(json.dumps(result))
    return 0


def _encoding(model: LoadedModel, args: argparse.Namespace) -> dict[str, Times]:
    """Milliseconds of the text encoder by its name, printed; empty where there is none to time."""
    import torch

    from .programs import interleaved
    from .text_encoder import text_encoder

    found = text_encoder(model, args.batch, args.text_tokens)
    if found is None:
        return {}
    with torch.inference_mode():
        times = interleaved({found[0]: found[1]}, args.runs)
    for name, ms in times.items():
        prompts = counted(args.batch, "prompt")
        print(f"text encoder, apart: {ms.median:.2f} ms ({ms.low:.2f} to {ms.high:.2f}), {name}, {prompts} a call")
    return times


def _schedules(args: argparse.Namespace, profile: ModelProfile) -> dict[str, Schedule]:
    found = {name: baseline(name, profile) for name in args.policy}
    for path in args.schedule:
        found[path.stem] = Schedule.load(path)
    for schedule in found.values():
        schedule.check_model(profile)
    # what an image takes depends on its rung: each is a candidate of its own
    return {
        f"{name}: {rung}" if rung else name: path
        for name, schedule in found.items()
        for rung, path in zip([rung.name for rung in schedule.rungs] or [""], schedule.paths, strict=True)
    }


def _part_table(parts: Mapping[str, Mapping[str, Times]], floors: Mapping[str, float]) -> str:
    """Milliseconds of every part; of the first candidate also its share of what the GPU could do at best."""
    first = next(iter(parts))
    rows = [["ms", *parts, f"limit of {first}", "share"]]
    for name, times in parts[first].items():
        cells = [f"{found[name].median:.2f}" if name in found else "-" for found in parts.values()]
        floor = floors.get(name)
        share = [f"{floor:.2f}", f"{100 * floor / times.median:.0f} %"] if floor else ["-", "-"]
        rows.append([name, *cells, *share])
    return table(rows)


def floors_ms(model: LoadedModel, schedule: Schedule, batch: int, gpu: str) -> dict[str, float]:
    """The longer of reading the layers' weights once and of the arithmetic at the GPU's peak, of every scale.

    Returns:
        Nothing for a GPU whose peaks are not known here.
    """
    from ...models.family import build_steps

    found: dict[str, float] = {}
    if gpu not in PEAKS:
        return found
    bytes_a_second, flops_a_second = PEAKS[gpu]
    for step in build_steps(model, schedule):
        plan = step.plan
        blocks: list[Any] = list(step.blocks())
        weights = sum(p.numel() * p.element_size() for layer in plan.layers for p in blocks[layer].parameters())
        seconds = max(weights / bytes_a_second, batch * scale_flops(plan, model.profile) / flops_a_second)
        found[f"{plan.size[0]} x {plan.size[1]}"] = seconds * 1e3
    return found


def _whole_table(
    whole: Mapping[str, Times], peaks: Mapping[str, float], schedules: Mapping[str, Schedule], profile: ModelProfile
) -> str:
    """The whole image, speed-ups over eager and over the first captured schedule, FLOPs, memory."""
    first = next(name for name in whole if name != EAGER)
    flops = schedule_flops(dense(profile), profile)
    rows = [["image", "ms", "min", "max", *(["over eager"] if EAGER in whole else []), f"over {first}", "FLOPs", "peak GiB"]]
    for name, times in whole.items():
        over = [f"{whole[EAGER].median / times.median:.2f}x"] if EAGER in whole else []
        fewer = f"{flops / schedule_flops(schedules[name], profile):.2f}x" if name in schedules else "1.00x"
        cells = [f"{times.median:.2f}", f"{times.low:.2f}", f"{times.high:.2f}", *over]
        rows.append([name, *cells, f"{whole[first].median / times.median:.2f}x", fewer, f"{peaks[name]:.2f}"])
    return table(rows)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("toprovar bench", add_arguments, run, "Latency of one image on a GPU.", argv)


if __name__ == "__main__":
    sys.exit(main())
