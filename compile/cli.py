"""`build-engine`: a schedule and a model to an engine bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..profiles.baselines import baseline
from ..profiles.console import add_model_arguments, chosen_profile, run_command
from ..profiles.errors import ScheduleError
from ..profiles.manifest import TARGETS
from ..profiles.model import ModelProfile
from ..profiles.plan import plan_scales
from ..profiles.schedule import Schedule
from ..profiles.tables import schedule_table

# measured on two cores, 13 graphs of the tiny model in 88 s: seconds to export one layer of one scale, and the rest of a graph
SECONDS_A_LAYER, SECONDS_A_GRAPH = 0.9, 1.2
BYTES_A_LAYER = 30_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--schedule", type=Path, help="schedule.yaml of `calibrate`")
    source.add_argument("--policy", help="a schedule that needs no calibration: dense, skip-N or noguide-N")
    parser.add_argument("--target", choices=TARGETS, default="onnx", help="what the engine runs on (default: onnx)")
    parser.add_argument("--out", type=Path, default=Path("engine"), help="folder of the bundle (default: engine)")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be built, its size and time; build nothing")
    parser.add_argument("--seed", type=int, help="of `--weights random` (default: as calibrated, else 0)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Build the bundle, or tell what would be built."""
    if args.policy:
        profile = chosen_profile(args)
        schedule = baseline(args.policy, profile)
    else:
        schedule = Schedule.load(args.schedule)
        profile = _profile(args, schedule)
    schedule.check_model(profile)
    if args.dry_run:
        return _dry_run(schedule, profile)
    from .bundle import check_destination

    check_destination(args.out)
    print(schedule_table(schedule, profile), file=sys.stderr)
    return _build(args, schedule, profile)


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


def _build(args: argparse.Namespace, schedule: Schedule, profile: ModelProfile) -> int:
    from tqdm import tqdm

    from ..models.load import WeightOptions, load_model
    from .bundle import build_bundle, graph_files

    recorded: dict[str, Any] = dict(schedule.provenance.get("weight_options") or {})
    given = {"weights": args.weights, "vae": args.vae, "text_encoder": args.text_encoder, "revision": args.revision}
    chosen = {key: value if value is not None else recorded.get(key) for key, value in given.items()}
    options = WeightOptions(**chosen, seed=args.seed if args.seed is not None else int(recorded.get("seed", 0)))
    model = load_model(profile, options)
    expected = schedule.provenance.get("weights")
    if expected and expected != model.digests:
        print("build-engine: warning: these are not the weights that the schedule was calibrated on", file=sys.stderr)
    source = options.text_encoder or profile.text.source
    text: dict[str, Any] = {"kind": profile.text.kind, "source": source, "revision": options.revision}
    if options.random and options.text_encoder is None and profile.text.kind != "words":
        text = {"kind": "random", "seed": options.seed}
    graphs = len(graph_files(schedule)) + 1 + (profile.text.kind == "words")
    with tqdm(total=graphs, unit="graph", desc="build-engine") as bar:
        names: list[str] = []

        def progress(name: str) -> None:
            bar.update(1 if names else 0)
            names.append(name)
            bar.set_postfix_str(name)

        manifest = build_bundle(model, schedule, args.out, text, progress)
        bar.update(1)
    size = sum(entry.bytes for entry in manifest.files.values())
    print(f"bundle    {args.out}  ({size / 1e6:.1f} MB, {len(manifest.scales)} scales, target {manifest.target})")
    print(f"schedule  {schedule.policy}  {manifest.flops_speedup:.2f}x fewer FLOPs than dense")
    print(f'next      run-engine --engine {args.out} --prompt "a photo of a red star"')
    return 0


def _dry_run(schedule: Schedule, profile: ModelProfile) -> int:
    import torch

    from ..models.infinity.transformer import Infinity
    from ..models.infinity.vae import BsqVae

    plans = plan_scales(schedule)
    with torch.device("meta"):
        modules = (Infinity(profile.transformer), BsqVae(profile.vae).decoder)
    weights = sum(p.numel() * 4 for module in modules for p in module.parameters())
    layers = sum(len(plan.layers) for plan in plans)
    graphs = len(plans) + 2 + (profile.text.kind == "words")
    print(schedule_table(schedule, profile))
    print(f"would build  {graphs} ONNX graphs of about {layers * BYTES_A_LAYER / 1e6:.1f} MB in all")
    print(f"weights      {weights / 1e6:.0f} MB, once, fp32")
    print(f"memory       about {2.2 * weights / 1e9 + 0.8:.1f} GB while building")
    print(f"time         about {layers * SECONDS_A_LAYER + graphs * SECONDS_A_GRAPH:.0f} s on two cores")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("build-engine", add_arguments, run, "Compile a schedule into an engine bundle.", argv)


if __name__ == "__main__":
    sys.exit(main())
