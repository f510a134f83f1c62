"""`build-engine`: a schedule and a model to an engine bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiles.baselines import FIXED_NAMES, baseline
from ..profiles.console import add_model_arguments, chosen_profile, if_interrupted, run_command
from ..profiles.errors import ScheduleError
from ..profiles.manifest import TARGETS, EngineManifest
from ..profiles.model import ModelProfile
from ..profiles.schedule import Schedule
from ..profiles.tables import schedule_table, speed_span
from .plan_options import PlanOptions, add_plan_arguments, check_limits, chosen_precision, plan_options

if TYPE_CHECKING:
    import torch

    from ..models.load import LoadedModel
    from .plans import PlanBuilder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--schedule", type=Path, help="schedule.yaml of `calibrate`")
    source.add_argument("--policy", help=f"a schedule that needs no calibration: {FIXED_NAMES}")
    parser.add_argument("--target", choices=TARGETS, default="onnx", help="what the engine runs on (default: onnx)")
    parser.add_argument("--out", type=Path, default=Path("engine"), help="folder of the bundle (default: engine)")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be built, its size and time; build nothing")
    parser.add_argument("--seed", type=int, help="of `--weights random` (default: as calibrated, else 0)")
    add_model_arguments(parser)
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Build the bundle, or tell what would be built."""
    if args.policy:
        profile = chosen_profile(args)
        schedule = baseline(args.policy, profile)
    else:
        schedule = Schedule.load(args.schedule)
        profile = _profile(args, schedule)
    schedule.check_model(profile)
    precision, options = chosen_precision(args), plan_options(args, profile)
    if options is not None:
        check_limits(schedule, profile, options.target)
    if args.dry_run:
        from .dry_run import dry_run

        if options is not None:
            from .tensorrt_flavours import check_targets

            check_targets(options.target, options.sm)
        return dry_run(schedule, profile, precision, options, args.target == "cuda")
    from .bundle import check_destination

    check_destination(args.out)
    print(schedule_table(schedule, profile), file=sys.stderr)
    remedy = "" if options is None else "; the same command with --resume keeps the plans that are done"
    with if_interrupted(f"{args.out} is as it was{remedy}"):
        return _build(args, schedule, profile, precision, options)


def _profile(args: argparse.Namespace, schedule: Schedule) -> ModelProfile:
    """The profile that the schedule was made with, changed by the flags given here."""
    recorded = schedule.provenance.get("profile")
    base = ModelProfile.from_dict(recorded, f"{args.schedule.name}: provenance.profile") if recorded else None
    if base is None and args.model is None:
        args.model = schedule.model
    profile = chosen_profile(args, base)
    if profile.name != schedule.model:
        raise ScheduleError(f"{args.schedule.name} was made for model {schedule.model}, not {profile.name}")
    return profile


def _build(
    args: argparse.Namespace, schedule: Schedule, profile: ModelProfile, precision: str, options: PlanOptions | None
) -> int:
    """Load the model, build, tell what was built."""
    from tqdm import tqdm

    from .bundle import DTYPES, build_bundle
    from .cuda_bundle import build_cuda_bundle
    from .graph_files import graph_files

    cuda = args.target == "cuda"
    graphs = 1 if cuda else (len(graph_files(schedule)) + (profile.text.kind == "words")) * (1 if options is None else 2)
    names: list[str] = []
    # a library that is missing or a GPU that does not fit is told before the weights are loaded
    builder = _plan_builder(options, lambda phase: bar.set_postfix_str(f"{names[-1]}: {phase}"))
    with tqdm(total=graphs + 1, unit="graph", desc="build-engine") as bar:
        model, text = _load(args, schedule, profile, DTYPES[precision])

        def progress(name: str) -> None:
            bar.update(1 if names else 0)
            names.append(name)
            bar.set_postfix_str(name)

        if cuda:
            manifest = build_cuda_bundle(model, schedule, args.out, text, progress)
        else:
            manifest = build_bundle(model, schedule, args.out, text, progress, builder)
        bar.update(1)
    _tell(args.out, manifest)
    return 0


def _plan_builder(options: PlanOptions | None, detail: Callable[[str], None]) -> PlanBuilder | None:
    if options is None:
        return None
    from .plans import PlanBuilder
    from .tensorrt_flavours import toolkit

    return PlanBuilder(toolkit(options.target), options, detail)


def _load(
    args: argparse.Namespace, schedule: Schedule, profile: ModelProfile, dtype: torch.dtype
) -> tuple[LoadedModel, dict[str, Any]]:
    """The model, and how the run time makes its text encoder again."""
    from ..models.load import WeightOptions, load_model

    recorded: dict[str, Any] = dict(schedule.provenance.get("weight_options") or {})
    given = {"weights": args.weights, "vae": args.vae, "text_encoder": args.text_encoder, "revision": args.revision}
    chosen = {key: value if value is not None else recorded.get(key) for key, value in given.items()}
    options = WeightOptions(**chosen, seed=args.seed if args.seed is not None else int(recorded.get("seed", 0)))
    model = load_model(profile, options, dtype)
    expected = schedule.provenance.get("weights")
    if expected and expected != model.digests:
        print("build-engine: warning: these are not the weights that the schedule was calibrated on", file=sys.stderr)
    return model, model.text_source


def _tell(out: Path, manifest: EngineManifest) -> None:
    """What was built, on stdout."""
    if manifest.engine:
        from .build_report import REPORT, report_table

        print(report_table(json.loads((out / REPORT).read_text(encoding="utf-8"))))
    size = sum(entry.bytes for entry in manifest.files.values())
    what = f"{len(manifest.all_scales)} graphs of scales, target {manifest.target}, {manifest.precision}"
    print(f"bundle    {out}  ({size / 1e6:.1f} MB, {what})")
    speedups = [rung.flops_speedup for rung in manifest.rungs] or [manifest.flops_speedup]
    print(f"schedule  {manifest.policy}  {speed_span(speedups)} fewer FLOPs than dense")
    prompt = "0" if manifest.text_encoder.get("kind") == "classes" else '"a photo of a red star"'
    print(f"next      run-engine --engine {out} --prompt {prompt}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("build-engine", add_arguments, run, "Compile a schedule into an engine bundle.", argv)


if __name__ == "__main__":
    sys.exit(main())
