"""Which policies a sweep runs, and how each becomes a schedule and an engine: by the commands that users have.

A name is a policy of `build-engine --policy`, or `toprovar@X`, `auto@X` and `adaptive@X` (`auto --adaptive`), calibrated for a
speed-up of X.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...calibrate.cli import main as calibrate
from ...compile.cli import main as build_engine
from ...profiles.baselines import baseline
from ...profiles.errors import ScheduleError, ToprovarError
from ...profiles.model import ModelProfile

CALIBRATED = ("toprovar", "auto", "adaptive")
RULES_OF_OTHERS = ("fastvar", "skipvar")
SKIP, NOGUIDE, PRODUCT = range(1, 5), range(1, 6), (range(1, 4), range(1, 5))
"""N of skip-N and of noguide-N; in their products N, and how many more scales go without guidance."""
TARGETS = {"toprovar": (1.5, 2.0, 3.0), "auto": (1.2, 1.5, 2.0, 2.5, 3.0, 3.4, 4.0, 5.0), "adaptive": (2.0, 3.4)}


def default_policies(profile: ModelProfile) -> list[str]:
    """All that the model takes, each schedule once."""
    names = ["dense", *(f"skip-{n}" for n in SKIP), *(f"noguide-{n}" for n in NOGUIDE)]
    names += [f"skip-{n}+noguide-{n + more}" for n in PRODUCT[0] for more in PRODUCT[1]]
    found: dict[str, str] = {}
    for name in (*names, *RULES_OF_OTHERS):
        try:
            found.setdefault(baseline(name, profile).digest(), name)
        except ScheduleError:
            # the model has no guidance, or fewer scales
            continue
    return [*found.values(), *(f"{policy}@{target:g}" for policy, targets in TARGETS.items() for target in targets)]


def check_policies(names: Sequence[str], profile: ModelProfile) -> None:
    """Refuse names that are none, before anything runs.

    Raises:
        ScheduleError: A name is no policy, or does not fit the model.
    """
    for name in names:
        policy, _, target = name.partition("@")
        if policy not in CALIBRATED:
            baseline(name, profile)
            continue
        try:
            good = float(target) > 1
        except ValueError:
            good = False
        if not good:
            raise ScheduleError(f"policy {name!r}: give a speed-up of more than 1, as {policy}@2")


def family(name: str) -> str:
    """What belongs together in a plot: `skip-N`, `noguide-N`, their products, else the policy."""
    if "+" in name:
        return "skip-N+noguide-M"
    head, _, number = name.partition("@")[0].partition("-")
    return f"{head}-N" if number.isdigit() else head


def folder_name(name: str) -> str:
    """A folder for a policy's files."""
    return name.replace("+", "_")


def make_engine(name: str, args: argparse.Namespace, folder: Path) -> Path:
    """Calibrate where it takes that, and build; returns the bundle.

    Args:
        name: Of the policy.
        args: Flags of the sweep.
        folder: Of the policy; `schedule.yaml` of a calibrated one is left there.

    Raises:
        ToprovarError: A command refused; its own line stands on stderr.
    """
    policy, _, target = name.partition("@")
    source, engine = ["--policy", name], folder / "engine"
    if policy in CALIBRATED:
        schedule = folder / "schedule.yaml" if args.schedules is None else calibrated(name, args.schedules)
        if args.schedules is None:
            _calibrate(policy, target, args, schedule)
        source = ["--schedule", str(schedule)]
    # random weights are those of the calibration, in every engine
    command = [*source, "--target", args.target, "--out", str(engine), "--seed", str(args.calibration_seed)]
    _call("build-engine", build_engine(command + model_flags(args)), name)
    return engine


def calibrated(name: str, sweep: Path) -> Path:
    """The schedule of a calibrated policy in the folder of an earlier sweep.

    Raises:
        ToprovarError: It is not there.
    """
    path = sweep / "policies" / folder_name(name) / "schedule.yaml"
    if not path.is_file():
        raise ToprovarError(f"--schedules {sweep}: has no schedule of {name} ({path}); calibrate it: leave --schedules out")
    return path


def _calibrate(policy: str, target: str, args: argparse.Namespace, schedule: Path) -> None:
    # one folder for all targets: what a search has run is not run again
    work, searches = args.out / "calibration", policy != "toprovar"
    command = ["--prompts", str(args.calibration_prompts), "--policy", "auto" if searches else policy]
    command += ["--target-speedup", target, "--out", str(work), "--seed", str(args.calibration_seed)]
    command += ["--num-prompts", str(args.num_prompts)] if args.num_prompts else []
    command += ["--device", args.device] if args.device else []
    command += ["--costs", str(args.costs)] if args.costs and searches else []
    command += ["--adaptive"] if policy == "adaptive" else []
    _call("calibrate", calibrate(command + model_flags(args)), f"{policy}@{target}")
    schedule.parent.mkdir(parents=True, exist_ok=True)
    (work / "schedule.yaml").replace(schedule)


def _call(command: str, code: int, name: str) -> None:
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ToprovarError(f"policy {name}: {command} ended with {code}, its reason stands on stderr")


def model_flags(args: argparse.Namespace) -> list[str]:
    """The flags of `add_model_arguments` again, as they were given."""
    found: list[str] = []
    for name in ("model", "weights", "vae", "text_encoder", "revision", "pn", "aspect_ratio", "cfg", "tau"):
        value = getattr(args, name)
        if value is not None:
            found += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found
