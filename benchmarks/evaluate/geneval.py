"""Images in the folders that GenEval's own evaluation reads: `00000/metadata.jsonl`, `00000/samples/0000.png`, ...

The prompts' metadata is the user's file (GenEval's `evaluation_metadata.jsonl`). An image that is there already, with the same
prompt, seed and schedule in its own text, is not drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...profiles.errors import PromptError
from ...profiles.strict import write_atomic
from ...runtime.images import facts_of, holds, save_png
from .drawing import Drawer
from .outcome import Job, Pixels


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Entries of the metadata file, one a line, each with at least `tag` and `prompt`.

    Raises:
        PromptError: The file cannot be read, or a line is none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise PromptError(f"{path}: cannot be read ({problem}); give GenEval's evaluation_metadata.jsonl") from problem
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as problem:
            raise PromptError(f"{path}: line {number} is not JSON ({problem}); give GenEval's metadata file") from problem
        if not isinstance(entry, dict) or not {"tag", "prompt"} <= set(entry):
            raise PromptError(f"{path}: line {number} has no tag and prompt; give GenEval's metadata file")
        entries.append(entry)
    if not entries:
        raise PromptError(f"{path}: holds no prompts; give GenEval's evaluation_metadata.jsonl")
    return entries


def draw_folders(drawer: Drawer, entries: list[dict[str, Any]], out: Path, samples: int, seed: int) -> int:
    """Draw what is missing.

    Args:
        drawer: The engine.
        entries: Of the metadata file; prompt i stands in folder i.
        out: Folder of the folders.
        samples: Images a prompt.
        seed: Sample j of prompt i is drawn with `seed + i * samples + j`, by every engine.

    Returns:
        How many images were drawn; the others were there.
    """
    from tqdm import tqdm

    drawn = 0
    for index, entry in enumerate(tqdm(entries, unit="prompt", desc=out.name, disable=None)):
        folder = out / f"{index:05d}"
        write_atomic(folder / "metadata.jsonl", (json.dumps(entry) + "\n").encode())
        for sample in range(samples):
            job, path = Job(entry["prompt"], seed + index * samples + sample), folder / "samples" / f"{sample:04d}.png"
            text = facts_of(drawer.engine, job.prompt, job.seed)
            if holds(path, text):
                continue
            save_png(path, drawer.draw(job).pixels, text)
            drawn += 1
    return drawn


def score_folders(out: Path, entries: list[dict[str, Any]], samples: int, read: Callable[[Pixels, str], float]) -> float:
    """Mean CLIPScore over all images of the folders."""
    from PIL import Image

    scores = []
    for index, entry in enumerate(entries):
        for sample in range(samples):
            path = out / f"{index:05d}" / "samples" / f"{sample:04d}.png"
            scores.append(read(np.asarray(Image.open(path).convert("RGB")), entry["prompt"]))
    return sum(scores) / len(scores)
