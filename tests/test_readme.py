"""Every command block of the README is a command that the parsers take, on files and profiles that exist or are made."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
from toprovar.cli import COMMANDS

SCRIPTS = {"calibrate": "calibrate.cli", "build-engine": "compile.cli", "run-engine": "runtime.cli"}
ROOT = Path(__file__).parents[1]


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_first_screen_has_what_a_visitor_needs() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:45])
    assert first.startswith("# toprovar\n")
    for part in ("| ", "pip install", "calibrate --prompts", "build-engine --schedule", "run-engine --engine"):
        assert part in first


@pytest.mark.parametrize("command", _commands())
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if words[0] == "pip":
        assert words[2] in (ROOT / "pyproject.toml").read_text()
        return
    if words[0] == "python3":
        assert "-e ." in command
        return
    if "-m" in words[:2]:
        assert importlib.util.find_spec(words[2]) is not None
        return
    module = SCRIPTS[words[0]] if words[0] in SCRIPTS else COMMANDS[words[1]][0]
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"toprovar.{module}").add_arguments(parser)
    args = parser.parse_args(words[1:] if words[0] in SCRIPTS else words[2:])
    for value in vars(args).values():
        if str(value).startswith("profiles/"):
            assert (ROOT / str(value)).exists()
