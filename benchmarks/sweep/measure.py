"""One policy of a sweep against dense: latency in turn, fidelity at equal seeds, SceneEval, pictures for the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...profiles.costs import CostTable
from ...runtime.images import save_png
from ..evaluate.cli import prompts_of
from ..evaluate.drawing import Drawer, Readers, tally
from ..evaluate.outcome import jobs_of
from ..evaluate.scenes import chosen_prompts, detector
from ..evaluate.summary import machine, records

PICTURES = 3
"""Images of each policy in the report."""


def measure(args: argparse.Namespace, dense: Path, engine: Path, folder: Path, key: str) -> dict[str, Any]:
    """The record of `engine`.

    Args:
        args: Flags of the sweep.
        dense: The dense bundle.
        engine: The policy's bundle; may be the dense one.
        folder: Where its pictures are left, as `picture_0.png`, ...
        key: Of the sweep; dense images of another are not used.
    """
    judged = chosen_prompts(args.limit) if args.scene_eval else None
    texts = prompts_of(args.prompts, args.limit) if judged is None else [prompt.prompt for prompt in judged]
    jobs = jobs_of(texts, args.seed, args.seeds)
    readers = Readers(None if judged is None else detector())
    drawers = [Drawer(path, args.threads) for path in ([dense] if engine == dense else [dense, engine])]
    tallies = tally(drawers, jobs, readers, args.warm_up, args.timed, args.out / "reference" / key[:16])
    costs = CostTable.load(args.costs) if args.costs else None
    found = records(drawers, tallies, judged * args.seeds if judged is not None else None, costs)
    for index, pixels in enumerate(tallies[-1].pictures[:PICTURES]):
        save_png(folder / f"picture_{index}.png", pixels, {"prompt": jobs[index].prompt, "seed": str(jobs[index].seed)})
    # the dense latency of the same minutes, which the speed-up is taken from
    return {**found[-1], **machine(args.threads), "dense_ms": found[0]["latency_ms"], "images": len(jobs)}
