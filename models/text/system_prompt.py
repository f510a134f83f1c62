"""The text that stands in front of every prompt of HART. It belongs to the release of HART and does not ship here.

The official repository holds it in its code, not beside the language model, so a user writes it into the model's folder once.
A file whose end an editor has changed is read as it was; another text is taken at its word, with a warning.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ...profiles.errors import CheckpointError

SYSTEM_PROMPT = "system_prompt.txt"
"""File beside those of the language model."""
REPOSITORY = "mit-han-lab/hart"
OFFICIAL_SHA256 = "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"
"""Of the official text, which ends with a line break."""
COMMAND = """python -c "import runpy; print(runpy.run_path('hart/utils/constants.py')['llm_system_prompt'])\""""
"""Prints the text, in a clone of the official repository."""

log = logging.getLogger(__name__)


def read_system_prompt(source: str) -> str:
    """The text in the folder of a language model.

    Args:
        source: The folder. A hub id will not do: the released language model comes without the text.

    Raises:
        CheckpointError: It is no folder, or the text is missing, empty or unreadable.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"{source}: is no folder here, and HART needs its language model in one, with the system prompt it was trained "
            f"behind, which the model's release lacks; download the model, in a clone of {REPOSITORY} run "
            f"`{COMMAND} > FOLDER/{SYSTEM_PROMPT}`, and pass --text-encoder FOLDER"
        )
    path = folder / SYSTEM_PROMPT
    if not path.is_file():
        raise CheckpointError(
            f"{source}: no {SYSTEM_PROMPT}, and HART was trained on prompts that stand behind one; in a clone of {REPOSITORY} "
            f"run `{COMMAND} > {path}`"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise CheckpointError(f"{path}: cannot be read as text ({err}); write it anew") from err
    if not text.strip():
        raise CheckpointError(f"{path}: is empty; in a clone of {REPOSITORY} run `{COMMAND} > {path}`")
    official = f"{text.strip()}\n"
    if prompt_sha256(official) == OFFICIAL_SHA256:
        return official
    log.warning("%s: is not the system prompt that HART was released with; prompts are encoded behind this one", path)
    return text


def prompt_sha256(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
