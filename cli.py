"""`toprovar`: one command with the stages and the inspectors as subcommands; a stage is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .profiles.console import guarded

COMMANDS = {
    "calibrate": ("calibrate.cli", "prompts and a model to measurements, schedule.yaml and report.html"),
    "build-engine": ("compile.cli", "a schedule and a model to an engine bundle"),
    "run": ("runtime.cli", "prompts to images, as run-engine"),
    "eval": ("benchmarks.evaluate.cli", "engines beside a reference: fidelity, SceneEval, images for GenEval"),
    "bench": ("benchmarks.latency.cli", "latency of one image on a GPU, scale by scale"),
    "sweep": ("benchmarks.sweep.cli", "every policy over its range: one table, one plot, one report"),
    "inspect": ("profiles.inspect", "print a schedule, a bundle or a profile as a table"),
    "doctor": ("runtime.doctor", "what this machine can run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="toprovar", description="Calibrate, compile and run visual autoregressive image models."
    )
    parser.add_argument("--version", action="version", version=f"toprovar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # only the stage that runs is imported, so that the help and the inspectors answer at once
    wanted = next((word for word in argv if word in COMMANDS), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == wanted:
            importlib.import_module(f"{__package__}.{module}").add_arguments(command)
    args = parser.parse_args(argv)
    stage = importlib.import_module(f"{__package__}.{COMMANDS[args.command][0]}")
    return guarded(f"toprovar {args.command}", stage.run, args)


if __name__ == "__main__":
    sys.exit(main())
