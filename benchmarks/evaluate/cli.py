"""`toprovar eval`: engines beside a reference, by fidelity, SceneEval or images for GenEval.

toprovar eval --engine out/auto out/skip-1 --reference out/dense --suite fidelity --prompts prompts.txt
toprovar eval --engine out/auto --reference out/dense --suite scene --seeds 4 --out scene.json
toprovar eval --engine out/auto --suite geneval --metadata evaluation_metadata.jsonl --images geneval
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...profiles.console import GOES_ON, if_interrupted, run_command
from ...profiles.errors import ToprovarError
from ...profiles.fidelity import need_ssim
from ...profiles.strict import write_atomic
from ...profiles.tables import table

if TYPE_CHECKING:
    from .drawing import Drawer
    from .journal import Journal

SUITES = ("fidelity", "scene", "geneval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", type=Path, nargs="+", required=True, help="bundles of `build-engine`")
    parser.add_argument("--reference", type=Path, help="bundle they are compared with, the dense one (not for geneval)")
    parser.add_argument("--suite", choices=SUITES, default="fidelity", help="default: fidelity")
    parser.add_argument("--prompts", type=Path, help="for fidelity: text file, one prompt a line")
    parser.add_argument("--limit", type=int, help="for scene: the first N prompts of each task; else the first N prompts")
    parser.add_argument("--seeds", type=int, default=1, help="images a prompt, of fidelity and scene (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--metadata", type=Path, help="for geneval: GenEval's evaluation_metadata.jsonl")
    parser.add_argument("--images", type=Path, default=Path("geneval"), help="for geneval: folder of the images")
    parser.add_argument("--samples", type=int, default=4, help="for geneval: images a prompt (default: 4, as GenEval asks)")
    parser.add_argument("--costs", type=Path, help="cost table; predicted latency is shown beside the measured one")
    parser.add_argument("--clip-score", action="store_true", help="add CLIPScore, through torchmetrics")
    parser.add_argument("--clip-model", default="openai/clip-vit-base-patch16", help="hub id or folder of CLIP's weights")
    parser.add_argument("--warm-up", type=int, default=2, help="images drawn before timing (default: 2)")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="write everything as JSON; an interrupted evaluation goes on from there")


def run(args: argparse.Namespace) -> int:
    """Check, draw, compare, print."""
    _check(args)
    kept = GOES_ON if args.out or args.suite == "geneval" else "images are kept for the next run only with --out"
    with if_interrupted(kept):
        result, journal = (_geneval(args), None) if args.suite == "geneval" else _compare(args)
    if args.out:
        write_atomic(args.out, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
        print(f"results  {args.out}")
    if journal is not None:
        journal.end()
    return 0


def _check(args: argparse.Namespace) -> None:
    needs = {"fidelity": ("reference", "prompts"), "scene": ("reference",), "geneval": ("metadata",)}[args.suite]
    for name in needs:
        if getattr(args, name) is None:
            raise ToprovarError(f"--suite {args.suite} needs --{name}")
    for name in ("seeds", "samples", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ToprovarError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.out and args.out.is_dir():
        raise ToprovarError(f"--out {args.out}: is a folder; name a file, as {args.out / 'eval.json'}")
    if args.suite == "geneval" and len({engine.resolve().name for engine in args.engine}) < len(args.engine):
        raise ToprovarError("--engine: two bundles have the same folder name, and images are kept by it; rename one")


def _compare(args: argparse.Namespace) -> tuple[dict[str, Any], Journal | None]:
    """Fidelity and latency, and with `scene` what the images show; and the journal, which ends when the result is written."""
    need_ssim()
    from ...profiles.costs import CostTable
    from .drawing import Drawer, Readers, tally
    from .outcome import jobs_of
    from .scenes import chosen_prompts, detector, need_texts
    from .summary import machine, records, rows, significance

    costs = CostTable.load(args.costs) if args.costs else None
    judged = chosen_prompts(args.limit) if args.suite == "scene" else None
    texts = [prompt.prompt for prompt in judged] if judged is not None else prompts_of(args.prompts, args.limit)
    readers = Readers(detector() if judged is not None else None, _clip(args))
    drawers = [Drawer(folder, args.threads) for folder in (args.reference, *args.engine)]
    if judged is not None:
        for drawer in drawers:
            need_texts(drawer.engine.profile, "SceneEval")
    journal = _journal(args, drawers) if args.out else None
    tallies = tally(drawers, jobs_of(texts, args.seed, args.seeds), readers, args.warm_up, journal=journal)
    found = records(drawers, tallies, judged * args.seeds if judged is not None else None, costs)
    print(table(rows(found)))
    if judged is not None:
        print(significance(found))
    facts = {"suite": args.suite, "prompts": len(texts), "seeds": args.seeds, "seed": args.seed}
    return {"format": 1, **machine(args.threads), **facts, "engines": found}, journal


def _journal(args: argparse.Namespace, drawers: Sequence[Drawer]) -> Journal:
    """Of an interrupted evaluation of the same engines, whatever its number of seeds and prompts, or a new one."""
    from .journal import Journal, bundle_digest
    from .summary import machine

    facts = {"suite": args.suite, "clip_model": args.clip_model if args.clip_score else None, **machine(args.threads)}
    journal = Journal(
        args.out.with_name(f"{args.out.name}.partial"), {**facts, "engines": [bundle_digest(d.folder) for d in drawers]}
    )
    if len(journal):
        print(f"{journal.path}: {len(journal)} images of each engine are there already", file=sys.stderr)
    return journal


def _clip(args: argparse.Namespace) -> Any:
    if not args.clip_score:
        return None
    from .clip import clip_scorer

    return clip_scorer(args.clip_model)


def prompts_of(path: Path, limit: int | None) -> list[str]:
    """Prompts of a text file, or the first so many of them."""
    from ...runtime.cli import read_prompts

    return read_prompts(path)[:limit]


def _geneval(args: argparse.Namespace) -> dict[str, Any]:
    """Images in GenEval's folders; the score is GenEval's own program's to give."""
    from .drawing import Drawer
    from .geneval import draw_folders, read_metadata, score_folders
    from .scenes import need_texts

    entries = read_metadata(args.metadata)[: args.limit]
    read = _clip(args)
    found, lines = [], [["engine", "images drawn", "already there", *(["CLIPScore"] if read else [])]]
    for folder in ([args.reference] if args.reference else []) + args.engine:
        out = args.images / folder.resolve().name
        drawer = Drawer(folder, args.threads)
        need_texts(drawer.engine.profile, "GenEval")
        drawn = draw_folders(drawer, entries, out, args.samples, args.seed)
        clip = [round(score_folders(out, entries, args.samples, read), 3)] if read else []
        there = len(entries) * args.samples - drawn
        found.append({"engine": str(folder), "images": str(out), "drawn": drawn, "there": there, "clip_score": clip})
        lines.append([str(folder), str(drawn), str(there), *map(str, clip)])
    print(table(lines))
    print(f"next     run GenEval's evaluation/evaluate_images.py on each folder in {args.images}")
    return {"format": 1, "suite": "geneval", "prompts": len(entries), "samples": args.samples, "engines": found}


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("eval", add_arguments, run, "Engines beside a reference.", argv)


if __name__ == "__main__":
    sys.exit(main())
