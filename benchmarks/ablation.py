"""What each dimension and each way to choose tokens brings, at equal FLOPs, on a model and a few prompts.

    python -m toprovar.benchmarks.ablation --model tiny --prompts prompts.txt --num-prompts 8 --out runs/ablation

Two tables. Dimensions: the search of `auto` with one dimension alone, with all but one, and with all; each row is the nearest
to dense that reaches the speed-up, so a dimension is worth what is lost without it. Tokens: at one scale and number of kept
tokens, every score with every fill; FLOPs are equal by construction. Every score reads the state before the pruned scale only:

    entropy       attention entropy of the scale before; low keeps the sharp tokens, high the blurred ones
    uncertainty   mean entropy of the bits drawn at the scale before; low keeps the sure tokens, high the unsure ones
    change        length of the code that the scale before added; high keeps what still moves
    random        a fixed permutation

Torch runs the schedules; images are compared with those of the dense model at equal noise. The search chooses on the prompts it
is measured on, which flatters all rows of the first table alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiles.baselines import dense
from ..profiles.console import add_model_arguments, chosen_profile, run_command
from ..profiles.errors import ToprovarError
from ..profiles.fidelity import need_ssim
from ..profiles.strict import write_atomic
from ..profiles.tables import table

if TYPE_CHECKING:
    from ..calibrate.search.trials import Fidelity, Trials
    from ..models.load import LoadedModel

SPEEDUPS = (1.25, 1.5, 2.0, 3.0)
FILLS = ("hold", "cache", "bypass")
SHARES = (0.5, 0.25)
Record = dict[str, Any]


def dimension_rows(trials: Trials, speedups: Sequence[float]) -> Iterator[Record]:
    """The best schedule of each subset of dimensions at each speed-up; None where the subset does not reach it."""
    from ..calibrate.search.price import Price
    from ..calibrate.search.search import DIMENSIONS, Search

    names = sorted(DIMENSIONS)
    subsets = [
        *((f"{name} only", frozenset((name,))) for name in names),
        *((f"all but {name}", DIMENSIONS - {name}) for name in names),
        ("all", DIMENSIONS),
    ]
    for title, dimensions in subsets:
        points = Search(trials, Price(trials.model.profile), dimensions=dimensions).run()
        for speedup in speedups:
            fast = [point for point in points if point.speedup >= speedup]
            best = max(fast, key=lambda point: point.fidelity.psnr_db, default=None)
            record: Record = {"dimensions": title, "asked": speedup, "flops_speedup": None, "psnr_db": None, "ssim": None}
            if best is not None:
                record |= {"flops_speedup": round(best.speedup, 3), **_fidelity(best.fidelity)}
            yield record


def token_rows(model: LoadedModel, prompts: Sequence[tuple[str, int]], scales: Sequence[int]) -> Iterator[Record]:
    """Every score with every fill at every share, at each scale alone."""
    from ..profiles.plan import schedule_flops
    from .token_scores import SCORES, ScoreTrials, pruned

    profile = model.profile
    whole = schedule_flops(dense(profile), profile)
    cases = [(scale, share, fill, score) for scale in scales for share in SHARES for fill in FILLS for score in SCORES]
    schedules = [pruned(profile, scale, share, fill, score) for scale, share, fill, score in cases]
    found = ScoreTrials(model, prompts).measure(list(zip(schedules, (case[3] for case in cases), strict=True)))
    for (scale, share, fill, score), schedule, fidelity in zip(cases, schedules, found, strict=True):
        speedup = round(whole / schedule_flops(schedule, profile), 3)
        record = {"scale": scale, "share": share, "fill": fill, "score": score, "flops_speedup": speedup}
        yield record | _fidelity(fidelity)


def _fidelity(found: Fidelity) -> Record:
    return {"psnr_db": round(found.psnr_db, 2), "ssim": None if found.ssim is None else round(found.ssim, 4)}


def pivoted(found: Sequence[Record], row: Sequence[str], column: str) -> list[list[str]]:
    """PSNR (and the FLOPs speed-up where it differs from what the column asks) with one column a value of `column`."""
    heads = list(dict.fromkeys(record[column] for record in found))
    lines: dict[tuple[Any, ...], dict[Any, str]] = {}
    for record in found:
        cell = "-" if record["psnr_db"] is None else f"{record['psnr_db']:.2f}"
        if record["psnr_db"] is not None and column == "asked":
            cell += f" ({record['flops_speedup']:.2f}x)"
        lines.setdefault(tuple(record[name] for name in row), {})[record[column]] = cell
    top = [" ".join(row), *(f"{head:g}x" if isinstance(head, float) else str(head) for head in heads)]
    return [top, *([" ".join(map(str, key)), *(cells.get(head, "") for head in heads)] for key, cells in lines.items())]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line")
    parser.add_argument("--num-prompts", type=int, help="the first N of them (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    parser.add_argument("--speedups", type=float, nargs="+", default=list(SPEEDUPS), help="in FLOPs, of the first table")
    parser.add_argument("--scales", type=int, nargs="+", help="of the second table (default: the last two)")
    parser.add_argument("--only", choices=("dimensions", "tokens"), help="one of the two tables")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder: trials (to resume) and ablation.json")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run both tables; the last line is JSON."""
    need_ssim()
    profile = chosen_profile(args)
    last = len(profile.sizes) - 1
    scales = args.scales or [last - 1, last]
    if not all(1 <= scale <= last for scale in scales):
        raise ToprovarError(f"--scales must be 1 to {last} for {profile.name}, got {scales}")
    from ..calibrate.search.policy import trials_key
    from ..calibrate.search.trials import Trials
    from ..models.load import WeightOptions, load_model
    from .evaluate.cli import prompts_of

    options = WeightOptions(weights=args.weights, vae=args.vae, text_encoder=args.text_encoder, revision=args.revision)
    model = load_model(profile, options, device=args.device)
    prompts = [(text, args.seed + i) for i, text in enumerate(prompts_of(args.prompts, args.num_prompts))]
    result: Record = {"format": 1, "model": profile.name, "prompts": len(prompts), "seed": args.seed}
    if args.only != "tokens":
        trials = Trials(model, prompts, trials_key(model), args.out / "trials.json", with_ssim=True)
        result["dimensions"] = list(dimension_rows(trials, args.speedups))
        print("PSNR to dense, dB (FLOPs speed-up reached), by the dimensions that may change")
        print(table(pivoted(result["dimensions"], ("dimensions",), "asked")), end="\n\n")
    if args.only != "dimensions":
        result["tokens"] = list(token_rows(model, prompts, scales))
        print("PSNR to dense, dB, by the score that chooses which tokens run")
        print(table(pivoted(result["tokens"], ("scale", "share", "fill"), "score")), end="\n\n")
    write_atomic(args.out / "ablation.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    print(json.dumps(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("ablation", add_arguments, run, "What each dimension and token score brings.", argv)


if __name__ == "__main__":
    sys.exit(main())
