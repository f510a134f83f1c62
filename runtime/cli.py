"""`run-engine`: prompts to PNG files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..profiles.console import if_interrupted, run_command
from ..profiles.errors import PromptError, ToprovarError
from ..profiles.tables import milliseconds, table

if TYPE_CHECKING:
    from .loop import Engine, Images

MAX_BATCH = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", type=Path, required=True, help="bundle of `build-engine`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="one prompt")
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    parser.add_argument("--negative-prompt", help="guide away from this text instead of the learned empty one")
    parser.add_argument("--seed", type=int, default=0, help="of the first image of each prompt (default: 0)")
    parser.add_argument("--num-images", type=int, default=1, help="images a prompt, with seeds counting up (default: 1)")
    parser.add_argument("--batch", type=int, default=1, help="images drawn together (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("images"), help="folder of the PNG files (default: images)")
    parser.add_argument("--resume", action="store_true", help="leave images of this engine, prompt and seed that are there")
    parser.add_argument("--text-encoder", help="folder or hub id, where the bundle's own is not at hand")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="results as text or JSON lines")
    parser.add_argument("--verbose", action="store_true", help="print the time of every scale")


def run(args: argparse.Namespace) -> int:
    """Draw every image of every prompt."""
    prompts = _prompts(args)
    for name, least, most in (("seed", 0, 2**63 - 1), ("num_images", 1, 10**6), ("batch", 1, MAX_BATCH)):
        if not least <= getattr(args, name) <= most:
            raise ToprovarError(f"--{name.replace('_', '-')} must be {least} to {most}, got {getattr(args, name)}")
    from tqdm import tqdm

    from .images import facts_of, save_png
    from .open_engine import open_engine

    started = time.perf_counter()
    engine = open_engine(args.engine, args.threads)
    engine.tell = partial(print, file=sys.stderr)
    engine.tell(f"loaded {args.engine} in {time.perf_counter() - started:.1f} s")
    jobs = _jobs(args, prompts, engine)
    with (
        if_interrupted("images that are written stay, and the same command with --resume draws the others"),
        tqdm(total=len(jobs), unit="image", disable=len(jobs) < 2) as bar,
    ):
        for images, part in _draw(engine, jobs, args):
            for offset, (job, pixels) in enumerate(zip(part, images.uint8(), strict=True)):
                save_png(job.path, pixels, facts_of(engine, job.prompt, job.seed, args.negative_prompt))
                # the bar steps aside, or the line would begin in it
                with tqdm.external_write_mode():
                    _tell(args, job, images, offset)
            bar.update(len(part))
    return 0


class Job(NamedTuple):
    """One image: its file, and what is drawn."""

    path: Path
    prompt: str
    seed: int


def _jobs(args: argparse.Namespace, prompts: list[str], engine: Engine) -> list[Job]:
    """All images in order; with --resume those that are missing."""
    pairs = [(prompt, args.seed + i) for prompt in prompts for i in range(args.num_images)]
    digits = max(4, len(str(len(pairs) - 1)))
    jobs = [Job(args.output / f"{i:0{digits}d}_seed{seed}.png", prompt, seed) for i, (prompt, seed) in enumerate(pairs)]
    if not args.resume:
        return jobs
    from .images import facts_of, holds

    left = [job for job in jobs if not holds(job.path, facts_of(engine, job.prompt, job.seed, args.negative_prompt))]
    engine.tell(f"{len(jobs) - len(left)} of {len(jobs)} images are there already")
    return left


def _draw(engine: Engine, jobs: list[Job], args: argparse.Namespace) -> Iterator[tuple[Images, list[Job]]]:
    """Yield images and their jobs, batch after batch."""
    from .text import TextSource

    texts = TextSource(engine, args.text_encoder)
    for start in range(0, len(jobs), args.batch):
        part = jobs[start : start + args.batch]
        features = texts.encode([job.prompt for job in part])
        for job, cut in zip(part, features.cut, strict=True):
            if cut:
                told = f"prompt is longer than the encoder takes and was cut: {job.prompt!r}"
                print(f"run-engine: warning: {told}", file=sys.stderr)
        negative = None
        if args.negative_prompt is not None:
            other = texts.encode([args.negative_prompt] * len(part))
            negative = (other.text, other.lengths)
        yield engine.generate(features.text, features.lengths, [job.seed for job in part], negative), part


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompt is not None:
        if not args.prompt.strip():
            raise PromptError("--prompt is empty; give a text")
        return [args.prompt]
    return read_prompts(args.prompts)


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; blank lines do not count."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as problem:
        raise PromptError(f"{path}: no such file; --prompts takes a text file, one prompt a line") from problem
    except (OSError, UnicodeDecodeError) as problem:
        raise PromptError(f"{path}: is no text file ({problem}); --prompts takes one prompt a line") from problem
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise PromptError(f"{path}: holds no prompts; write one a line")
    return prompts


def _tell(args: argparse.Namespace, job: Job, images: Images, index: int) -> None:
    """One line on stdout for the image at `index` of its batch."""
    total, batch = sum(images.milliseconds.values()), len(images.uint8())
    rung = {"rung": images.rungs[index]} if images.rungs else {}
    if args.log_format == "json":
        record = {"image": str(job.path), "prompt": job.prompt, "seed": job.seed, "latency_ms": total, "batch": batch, **rung}
        print(json.dumps({**record, "milliseconds": images.milliseconds} if args.verbose else record), flush=True)
        return
    print("  ".join([str(job.path), milliseconds(total), *rung.values(), job.prompt]), flush=True)
    if args.verbose:
        rows = [["graph", "ms"], *([name, f"{value:.1f}"] for name, value in images.milliseconds.items())]
        print(table([*rows, ["all", f"{total:.1f}"]]), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("run-engine", add_arguments, run, "Run an engine bundle: prompts to PNG files.", argv)


if __name__ == "__main__":
    sys.exit(main())
