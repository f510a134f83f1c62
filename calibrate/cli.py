"""`calibrate`: prompts and a model to measurements, a schedule and a report."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiles.baselines import FIXED_NAMES, baseline
from ..profiles.console import GOES_ON, add_model_arguments, chosen_profile, if_interrupted, run_command
from ..profiles.errors import MeasurementError, ToprovarError
from ..profiles.model import ModelProfile
from ..profiles.schedule import Schedule
from ..profiles.tables import flops_speedups, schedule_table, speed_span
from .targets import add_target_arguments, check_target, search_summary

if TYPE_CHECKING:
    import torch

    from ..models.load import LoadedModel, WeightOptions
    from ..profiles.costs import CostTable
    from ..profiles.measurements import Measurements
    from .prompts import PromptSet

DTYPES = ("float32", "bfloat16", "float16")
SHOWN_CHARACTERS = 60
SEARCHED = ("toprovar", "auto")
"""Policies that are made for a target; the others are fixed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, help=".txt (one a line), .jsonl, .json, .csv, .parquet, or a dataset id")
    parser.add_argument("--column", help="where the prompts are (default: prompt, caption or text)")
    parser.add_argument("--split", default="train", help="of a dataset id (default: train)")
    parser.add_argument("--num-prompts", type=int, help="how many, chosen by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, the images' noise and random weights (default: 0)")
    parser.add_argument("--policy", default="toprovar", help=f"toprovar, auto, {FIXED_NAMES} (default: toprovar)")
    add_target_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("calibration"), help="folder of the results (default: calibration)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the weights (default: {DTYPES[0]})")
    add_model_arguments(parser)


@if_interrupted(GOES_ON)
def run(args: argparse.Namespace) -> int:
    """Check what is cheap to check, measure, decide, and write all three files."""
    profile = chosen_profile(args)
    fixed = None if args.policy in SEARCHED else baseline(args.policy, profile)
    costs = check_target(args, profile)
    _check_writable(args.out)
    prompts = _prompts(args)
    device, dtype = _placement(args)

    from ..models.load import WeightOptions, load_model
    from .policy import toprovar_schedule
    from .report import write_report
    from .run import COMPLETE, measure

    options = WeightOptions(
        weights=args.weights, vae=args.vae, text_encoder=args.text_encoder, revision=args.revision, seed=args.seed
    )
    model = load_model(profile, options, dtype, device)
    measurements = measure(model, prompts, args.seed, args.out)
    _warn_of_cut(prompts, measurements, profile)
    schedule = fixed or (
        toprovar_schedule(measurements, profile, args.target_speedup)
        if args.policy == "toprovar"
        else _auto(args, model, prompts, costs)
    )
    digest = _sha256(args.out / COMPLETE)
    schedule = replace(schedule, provenance=_provenance(args, schedule, model, options, prompts, digest))
    schedule.save(args.out / "schedule.yaml")
    write_report(args.out / "report.html", measurements, schedule, profile)
    _summary(args, schedule, profile, COMPLETE)
    return 0


def _auto(args: argparse.Namespace, model: LoadedModel, prompts: PromptSet, costs: CostTable | None) -> Schedule:
    from .search.policy import auto_schedule
    from .search.target import Target

    target = Target(speedup=args.target_speedup, latency_ms=args.target_latency_ms, psnr_db=args.min_psnr, ssim=args.min_ssim)
    return auto_schedule(model, prompts.prompts, args.seed, args.out, target, args.budget_minutes, costs, args.adaptive)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as err:
        raise ToprovarError(f"--out {out}: cannot be written ({err.strerror}); choose another folder") from err


def _prompts(args: argparse.Namespace) -> PromptSet:
    from .prompts import load_prompts

    prompts = load_prompts(args.prompts, column=args.column, num_prompts=args.num_prompts, seed=args.seed, split=args.split)
    for count, what in ((prompts.duplicates, "repeated"), (prompts.blank, "blank")):
        if count:
            _warn(f"{prompts.source}: {count} {what} {'prompt' if count == 1 else 'prompts'} left out")
    if args.num_prompts is not None and args.num_prompts > len(prompts.prompts):
        _warn(f"{prompts.source}: holds {len(prompts.prompts)} different prompts, fewer than --num-prompts {args.num_prompts}")
    return prompts


def _placement(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Device, by default the best there is, and dtype."""
    import torch

    present = torch.cuda.is_available()
    name = args.device or ("cuda" if present else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ToprovarError(f"--device {name!r} is not known; choose cpu, cuda or cuda:N") from err
    if device.type not in ("cpu", "cuda"):
        raise ToprovarError(f"--device {name!r} is not supported; choose cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ToprovarError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here; use --device cpu")
    return device, getattr(torch, args.dtype)


def _warn_of_cut(prompts: PromptSet, measurements: Measurements, profile: ModelProfile) -> None:
    cut = measurements.header["cut"]
    if cut:
        first = prompts.prompts[cut[0]]
        shown = first if len(first) <= SHOWN_CHARACTERS else first[:SHOWN_CHARACTERS].rstrip() + " ..."
        _warn(
            f"{len(cut)} of {len(prompts.prompts)} prompts are longer than the text encoder takes "
            f"({profile.text.max_length} tokens) and lost their end; the first is {shown!r}"
        )


def _provenance(
    args: argparse.Namespace,
    schedule: Schedule,
    model: LoadedModel,
    options: WeightOptions,
    prompts: PromptSet,
    measurements_sha256: str,
) -> dict[str, Any]:
    """How the schedule came about: enough to repeat it, and for `build-engine` to find the same model."""
    profile, path = model.profile, Path(prompts.source)
    speedups = flops_speedups(schedule, profile)
    return {
        **schedule.provenance,
        "profile": profile.to_dict(),
        "weights": dict(model.digests),
        "weight_options": asdict(options),
        # a path tells of one machine only, a dataset id holds everywhere
        "prompts": {
            "source": path.name if path.exists() else prompts.source,
            "count": len(prompts.prompts),
            "sha256": prompts.sha256,
        },
        "seed": args.seed,
        "measurements_sha256": measurements_sha256,
        "target_speedup": args.target_speedup if schedule.policy in SEARCHED else None,
        # of rungs the slowest and the fastest
        "flops_speedup": [speedups[0], speedups[-1]] if schedule.rungs else speedups[0],
    }


def _summary(args: argparse.Namespace, schedule: Schedule, profile: ModelProfile, measured: str) -> None:
    print(schedule_table(schedule, profile))
    found = schedule.provenance.get("auto")
    in_time = found is not None and found["costs"] is not None
    asked = f" (asked {args.target_speedup:g}x)" if schedule.policy in SEARCHED and args.target_speedup and not in_time else ""
    print(f"\npredicted     {speed_span(flops_speedups(schedule, profile))} fewer FLOPs than dense{asked}")
    for line in search_summary(found) if found else ():
        print(line)
    for what, name in (("measurements", measured), ("schedule", "schedule.yaml"), ("report", "report.html")):
        print(f"{what:<12}  {args.out / name}")
    print(f"next          build-engine --schedule {args.out / 'schedule.yaml'}")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as err:
        raise MeasurementError(f"{path}: cannot be read ({err.strerror}); calibrate again") from err


def _warn(message: str) -> None:
    print(f"calibrate: warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("calibrate", add_arguments, run, "Measure a model on prompts and decide what to prune.", argv)


if __name__ == "__main__":
    sys.exit(main())
