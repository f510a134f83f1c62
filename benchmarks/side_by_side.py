"""Engines side by side on the same prompts and seeds: images, fidelity to the first engine, latency, SceneEval.

    python -m toprovar.benchmarks.side_by_side --engines out/dense out/engine --prompts prompts.txt --picture side.png
    python -m toprovar.benchmarks.side_by_side --engines out/dense out/skip-1 --scene-eval | tail -1 | jq .

`toprovar eval` measures the same; this adds a picture, and everything as JSON in the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiles.console import run_command
from ..profiles.fidelity import need_ssim
from ..profiles.tables import milliseconds, table
from .evaluate.cli import prompts_of

if TYPE_CHECKING:
    from .evaluate.outcome import Job, Tally


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, nargs="+", required=True, help="bundles; the first is the reference")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    source.add_argument("--scene-eval", action="store_true", help="the 300 fixed prompts of SceneEval, and their score")
    parser.add_argument("--limit", type=int, help="of SceneEval, the first N prompts of each task only")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; prompt i is drawn with seed + i")
    parser.add_argument("--same-seed", action="store_true", help="draw every prompt with --seed, as run-engine does")
    parser.add_argument("--warm-up", type=int, default=2, help="images drawn before timing (default: 2)")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("--picture", type=Path, help="PNG with the first prompts, a row an engine")


def run(args: argparse.Namespace) -> int:
    """Draw, compare, print."""
    need_ssim()
    from .evaluate.drawing import Drawer, Readers, tally
    from .evaluate.outcome import Job, jobs_of
    from .evaluate.scenes import chosen_prompts, detector
    from .evaluate.summary import machine, records, rows

    judged = chosen_prompts(args.limit) if args.scene_eval else None
    prompts = prompts_of(args.prompts, None) if judged is None else [prompt.prompt for prompt in judged]
    jobs = [Job(prompt, args.seed) for prompt in prompts] if args.same_seed else jobs_of(prompts, args.seed)
    readers = Readers(None if judged is None else detector())
    drawers = [Drawer(folder, args.threads) for folder in args.engines]
    tallies = tally(drawers, jobs, readers, args.warm_up)
    found = records(drawers, tallies, judged)
    print(table(rows(found)))
    if args.picture:
        _picture(args.picture, found, tallies, jobs)
        print(f"picture  {args.picture}")
    facts = {"prompts": len(prompts), "seed": args.seed, "same_seed": args.same_seed}
    print(json.dumps({**machine(args.threads), **facts, "engines": found}))
    return 0


def _picture(path: Path, found: Sequence[dict[str, Any]], tallies: Sequence[Tally], jobs: Sequence[Job]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = len(tallies[0].pictures)
    figure, axes = plt.subplots(len(found), columns, figsize=(1.9 * columns, 2.1 * len(found) + 0.4), squeeze=False)
    for row, (record, tally) in enumerate(zip(found, tallies, strict=True)):
        for column, pixels in enumerate(tally.pictures):
            axis = axes[row][column]
            axis.imshow(pixels)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                job = jobs[column]
                lines = [*textwrap.wrap(job.prompt.removeprefix("a photo of "), 24), f"seed {job.seed}"]
                axis.set_title("\n".join(lines), fontsize=7)
        axes[row][0].set_ylabel(f"{record['policy']}\n{milliseconds(record['latency_ms'][0])}", fontsize=9)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("side_by_side", add_arguments, run, "Engines side by side on the same prompts.", argv)


if __name__ == "__main__":
    sys.exit(main())
