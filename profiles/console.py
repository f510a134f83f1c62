"""What every command shares: model flags, and errors told in one line with exit code 2. No torch here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .errors import ToprovarError
from .model import ModelProfile, load_profile, shipped

AddArguments = Callable[[argparse.ArgumentParser], None]
RunCommand = Callable[[argparse.Namespace], int]

GOES_ON = "what is written stays, and the same command goes on from there"
"""For `if_interrupted`."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name a model, its weights and its geometry; names as in the official scripts."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", help=f"profile: {', '.join(shipped())}, or a profile .yaml (default: tiny)")
    group.add_argument("--weights", help="transformer: .pth, .safetensors, folder, hub id, or `random`")
    group.add_argument("--vae", help="VAE: file or hub id")
    group.add_argument("--text-encoder", help="text encoder: folder or hub id; of VAR a file of class names")
    group.add_argument("--revision", help="branch, tag or commit of hub ids")
    group.add_argument("--pn", choices=("0.06M", "0.25M", "0.60M", "1M"), help="pixel budget of Infinity")
    group.add_argument("--aspect-ratio", type=float, help="height / width of Infinity; the nearest of the 15 templates")
    group.add_argument(
        "--cfg",
        type=float,
        nargs="+",
        help="guidance strength; Infinity: one, or one a scale, 1 = none; VAR, HART: one, 0 = none",
    )
    group.add_argument("--tau", type=float, nargs="+", help="temperature of Infinity's bits: one, or one a scale")


def chosen_profile(args: argparse.Namespace, base: ModelProfile | None = None) -> ModelProfile:
    """The profile that the flags ask for; `base` stands in where no --model is given."""
    profile = load_profile(args.model) if args.model else base or load_profile("tiny")
    return profile.with_options(
        aspect_ratio=args.aspect_ratio,
        pixel_budget=args.pn,
        cfg=_one_or_list(args.cfg),
        tau=_one_or_list(args.tau),
    )


def _one_or_list(values: Sequence[float] | None) -> float | tuple[float, ...] | None:
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def run_command(
    name: str, add_arguments: AddArguments, run: RunCommand, description: str, argv: Sequence[str] | None = None
) -> int:
    """Parse, run, and turn a user's mistake into one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    add_arguments(parser)
    args = parser.parse_args(argv)
    return guarded(name, run, args)


def guarded(name: str, run: RunCommand, args: argparse.Namespace) -> int:
    """Run a command; 2 for a user's mistake, 130 where the user interrupts it."""
    try:
        return run(args)
    except ToprovarError as problem:
        print(f"{name}: error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{name}: interrupted; {str(stop) or 'what is written stays'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as problem:
        # a full disk or a folder without permission: the system's own words name the file
        print(f"{name}: error: {problem}", file=sys.stderr)
        return 2


@contextmanager
def if_interrupted(told: str) -> Iterator[None]:
    """Let `guarded` tell the user what becomes of the work that is interrupted in this block; of nested ones the innermost."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or told) from stop
