"""`toprovar inspect`: a schedule, a bundle or a profile as a table. Needs neither torch nor a GPU."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import ToprovarError
from .manifest import MANIFEST, SCHEDULE, EngineManifest
from .model import ModelProfile, load_profile, shipped
from .schedule import Schedule
from .strict import read_yaml
from .tables import rung_files_table, schedule_table, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("thing", help=f"schedule.yaml, a bundle's folder, or a profile: {', '.join(shipped())} or your .yaml")
    parser.add_argument("--model", help="profile the schedule is for, where it does not record one")


def run(args: argparse.Namespace) -> int:
    """Print what the thing is."""
    path = Path(args.thing)
    if args.thing in shipped() or _is_profile(path):
        _print_profile(load_profile(args.thing))
    elif path.is_dir():
        _print_bundle(path)
    elif path.suffix in (".yaml", ".yml"):
        schedule = Schedule.load(path)
        recorded = None if args.model else schedule.provenance.get("profile")
        profile = (
            ModelProfile.from_dict(recorded, f"{path.name}: provenance.profile")
            if recorded
            else load_profile(args.model or schedule.model)
        )
        schedule.check_model(profile)
        print(schedule_table(schedule, profile))
        print(f"schedule sha256  {schedule.digest()}")
    else:
        raise ToprovarError(f"{args.thing}: expected a schedule .yaml, a bundle's folder or one of {', '.join(shipped())}")
    return 0


def _is_profile(path: Path) -> bool:
    """Whether a file is a profile and no schedule."""
    return path.suffix in (".yaml", ".yml") and "transformer" in read_yaml(path, ToprovarError)


def _print_profile(profile: ModelProfile) -> None:
    config = profile.transformer
    rows = [
        ["profile", profile.name],
        ["layers x width", f"{config.depth} x {config.width}, {config.heads} heads of {config.head_width}"],
        *([name, value] for name, value in config.facts()),
        ["scales", " ".join(f"{h}x{w}" for h, w in profile.sizes)],
        ["image", "{} x {} pixels".format(*profile.image_size)],
        ["text encoder", f"{profile.text.kind} {profile.text.source}".strip()],
        ["sampling", ", ".join(f"{name} {value}" for name, value in asdict(profile.sampling).items())],
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))


def _print_bundle(folder: Path) -> None:
    manifest = EngineManifest.load(folder)
    manifest.verify(folder)
    profile, schedule = manifest.model_profile(), Schedule.load(folder / SCHEDULE)
    print(schedule_table(schedule, profile))
    print(f"\ntarget {manifest.target}, {manifest.precision}, built by toprovar {manifest.toprovar} with", end=" ")
    print(", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    print(f"schedule sha256  {manifest.schedule_sha256}")
    for part, digest in manifest.weights.items():
        print(f"{part}  {digest}")
    if manifest.engine:
        print(_plans(manifest.engine))
    if manifest.rungs:
        graphs = {rung.name: [scale.graph for scale in rung.scales] for rung in manifest.rungs}
        print(f"\n{rung_files_table({name: [g.plan or g.file for g in found] for name, found in graphs.items()})}")
    rows = [["file", "bytes", "sha256"]]
    rows += [[name, str(entry.bytes), entry.sha256[:16]] for name, entry in sorted(manifest.files.items())]
    print(f"\n{table(rows)}\n{folder / MANIFEST}: complete, every SHA-256 as recorded")


def _plans(engine: dict[str, Any]) -> str:
    """What must fit the machine, then what each plan holds."""
    limit = engine.get("workspace_gib")
    machines = ", ".join(f"sm_{sm}" for sm in engine.get("sm", ()))
    facts = {
        "flavour": f"{engine.get('flavour')} {engine.get('version')}",
        "GPUs": machines or "-",
        "attention kernels": engine.get("kernel_hash") or "none of ours",
        "options": f"--opt-level {engine.get('opt_level')}{f', --workspace {limit:g}' if limit else ''}",
        "largest request": f"{engine.get('max_batch')} images, {engine.get('max_text')} text tokens",
        "weights": f"{int(engine.get('weight_bytes') or 0) / 1e6:.1f} MB, once for all plans",
    }
    width = max(len(name) for name in facts)
    rows = [["plan", "bytes", "layers", "plugins", "built in s"]]
    for name, plan in sorted(engine.get("plans", {}).items()):
        cells = [str(plan.get(key, "-")) for key in ("bytes", "layers", "plugins")]
        rows.append([name, *cells, f"{plan['seconds']:.1f}" if "seconds" in plan else "-"])
    return "\n".join([*(f"{name.ljust(width)}  {value}" for name, value in facts.items()), "", table(rows)])
