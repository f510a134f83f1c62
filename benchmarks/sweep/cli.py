"""`toprovar sweep`: every policy over its range, built for a target and measured against dense.

    toprovar sweep --calibration-prompts profiles/tiny/prompts.txt --num-prompts 12 --prompts profiles/tiny/demo_prompts.txt
    toprovar sweep --calibration-prompts profiles/tiny/prompts.txt --scene-eval --seeds 2 --timed 30 --out runs/sweep

Each policy is calibrated and built by the commands that users have, drawn in turn with dense on the timed prompts, and
compared with dense images of the same seeds. What is measured is kept, so an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...profiles.console import GOES_ON, add_model_arguments, chosen_profile, if_interrupted, run_command
from ...profiles.errors import ToprovarError
from ...profiles.fidelity import need_ssim
from ...profiles.manifest import TARGETS
from ...profiles.strict import write_atomic
from ...profiles.tables import milliseconds

RESULT = "result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="text file of the prompts to measure on, one a line")
    source.add_argument("--scene-eval", action="store_true", help="measure on SceneEval's prompts, and judge them")
    parser.add_argument("--calibration-prompts", type=Path, help="prompts of toprovar and auto; others than those measured on")
    parser.add_argument("--schedules", type=Path, help="folder of an earlier sweep, whose calibrated schedules are taken")
    parser.add_argument("--num-prompts", type=int, help="of the calibration prompts, how many (default: all)")
    parser.add_argument(
        "--calibration-seed", type=int, default=1000, help="of the calibration's noise, and of random weights (default: 1000)"
    )
    parser.add_argument("--policies", nargs="+", help="such as skip-1 skip-1+noguide-3 toprovar@2 auto@2 (default: all)")
    parser.add_argument("--limit", type=int, help="of SceneEval the first N prompts of each task; else the first N prompts")
    parser.add_argument("--seeds", type=int, default=1, help="images a prompt (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--timed", type=int, default=24, help="images timed in turn with dense (default: 24)")
    parser.add_argument("--target", choices=TARGETS, default="onnx", help="what the engines run on (default: onnx)")
    parser.add_argument("--costs", type=Path, help="cost table: auto searches by latency, and predictions stand in the table")
    parser.add_argument("--device", help="of the calibration")
    parser.add_argument("--warm-up", type=int, default=2, help="images drawn before timing (default: 2)")
    parser.add_argument("--threads", type=int, help="threads of the engines (default: all cores)")
    parser.add_argument("--keep-engines", action="store_true", help="keep every bundle; else only dense stays")
    parser.add_argument("--out", type=Path, default=Path("sweep"), help="folder of all results (default: sweep)")
    add_model_arguments(parser)


@if_interrupted(GOES_ON)
def run(args: argparse.Namespace) -> int:
    """Make and measure what is missing, then write table, plot and report."""
    need_ssim()
    profile = chosen_profile(args)
    from ...compile.export_cache import reusing_graphs
    from ..evaluate.scenes import need_texts
    from .policies import CALIBRATED, calibrated, check_policies, default_policies
    from .report import write_results

    if args.scene_eval:
        need_texts(profile, "SceneEval")
    names = args.policies or default_policies(profile)
    if "dense" not in names:
        names = ["dense", *names]
    check_policies(names, profile)
    searched = [name for name in names if name.partition("@")[0] in CALIBRATED]
    if searched and args.calibration_prompts is None and args.schedules is None:
        raise ToprovarError(
            f"{searched[0]} needs --calibration-prompts, or --schedules of an earlier sweep; or name --policies without it"
        )
    ready = {name: calibrated(name, args.schedules) for name in searched} if args.schedules else {}
    key = _key(args, profile.digest())
    found = []
    with reusing_graphs():
        for name in sorted(names, key=lambda name: name != "dense"):
            result = _result(name, args, key, ready.get(name))
            found.append(result)
            print(_line(result), file=sys.stderr, flush=True)
    for path in write_results(args.out, found):
        print(path)
    failed = [record["policy"] for record in found if "error" in record]
    if failed:
        raise ToprovarError(f"{', '.join(failed)} could not be measured, for the reasons above; the same command tries again")
    return 0


def _key(args: argparse.Namespace, profile: str) -> str:
    """Everything that a result depends on, but the policy."""
    names = ("scene_eval", "num_prompts", "calibration_seed", "limit", "seeds", "seed", "timed", "target", "weights", "threads")
    facts: list[Any] = [__version__, profile, *(getattr(args, name) for name in names)]
    for path in (args.prompts, args.calibration_prompts, args.costs):
        facts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path else None)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _result(name: str, args: argparse.Namespace, key: str, schedule: Path | None) -> dict[str, Any]:
    """Of an earlier run where that is the same, else measured now; a failure is told and not kept."""
    own = key if schedule is None else hashlib.sha256(key.encode() + schedule.read_bytes()).hexdigest()
    from .measure import measure
    from .policies import folder_name, make_engine

    folder = args.out / "policies" / folder_name(name)
    dense = args.out / "policies" / "dense" / "engine"
    try:
        kept = json.loads((folder / RESULT).read_text())
    except (OSError, json.JSONDecodeError):
        kept = {}
    if kept.get("key") == own and (name != "dense" or dense.exists()):
        return dict(kept["record"])
    try:
        engine = make_engine(name, args, folder)
        record = {**measure(args, dense, engine, folder, key), "policy": name}
    except ToprovarError as problem:
        return {"policy": name, "error": " ".join(str(problem).split())}
    write_atomic(folder / RESULT, (json.dumps({"key": own, "record": record}, indent=1, sort_keys=True) + "\n").encode())
    if engine != dense and not args.keep_engines:
        shutil.rmtree(engine)
    return record


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['policy']:<20} failed: {record['error']}"
    fidelity = "same" if record["psnr_db"] is None else f"{record['psnr_db']:.1f} dB, SSIM {record['ssim']:.3f}"
    times = f"{record['flops_speedup']:.2f}x FLOPs, {record['speedup']:.2f}x time ({milliseconds(record['latency_ms'][0])})"
    return f"{record['policy']:<20} {times}, {fidelity}"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("sweep", add_arguments, run, "Every policy over its range.", argv)


if __name__ == "__main__":
    sys.exit(main())
