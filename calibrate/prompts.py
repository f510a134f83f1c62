"""Prompts for calibration: read from a file or a Hugging Face dataset, cleaned, and chosen by seed.

The same source, number and seed give the same prompts in the same order on every machine, and `sha256` proves it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..profiles.errors import PromptError
from .prompt_files import KINDS, check_file, one_line, read_file, text_values

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order in which they run, and what was left out on the way.

    Attributes:
        prompts: Unique, without surrounding white space, never blank.
        source: The file or dataset id as the user gave it.
        duplicates: Prompts removed because an earlier one is the same.
        blank: Prompts removed because they are missing or hold only white space.
        sha256: Hex digest of `prompts`, joined by newlines, in UTF-8.
    """

    prompts: tuple[str, ...]
    source: str
    duplicates: int
    blank: int
    sha256: str


def load_prompts(
    source: str,
    *,
    column: str | None = None,
    num_prompts: int | None = None,
    seed: int = 0,
    split: str = "train",
    revision: str | None = None,
) -> PromptSet:
    """Read prompts, drop blank and repeated ones, and choose `num_prompts` of them by `seed`.

    Args:
        source: A .txt (one prompt a line), .jsonl, .json, .csv or .parquet file, or a Hugging Face dataset id.
        column: Where the prompts are; by default the first of "prompt", "caption" and "text" that exists.
        num_prompts: How many to take. None, or at least as many as there are, takes all in the order of the file;
            otherwise they come in the order of a permutation drawn with `seed`.
        seed: Of the permutation, 0 or more.
        split: Of the dataset; files have none, so it is ignored there.
        revision: Branch, tag or commit of the dataset; ignored for files.

    Raises:
        PromptError: The source is missing, empty, binary, malformed or unreachable, or lacks a column of text.
    """
    if num_prompts is not None and num_prompts < 1:
        raise PromptError(f"num_prompts must be at least 1, got {num_prompts}; leave it out to take all prompts")
    if seed < 0:
        raise PromptError(f"seed must be 0 or more, got {seed}")
    path = Path(source).expanduser()
    if _is_file_name(source, path):
        check_file(path)
        values = read_file(path, column)
    else:
        values = _from_hub(source, column, split, revision)
    return _prompt_set(values, source, num_prompts, seed)


def _prompt_set(values: Sequence[str | None], source: str, num_prompts: int | None, seed: int) -> PromptSet:
    import numpy as np

    # white space at the ends does not change an image, so it must not make two prompts differ
    filled = [text for text in ((value or "").strip() for value in values) if text]
    if not filled:
        raise PromptError(f"{source}: holds only blank prompts ({len(values)}); expected text")
    unique = list(dict.fromkeys(filled))
    chosen = unique
    if num_prompts is not None and num_prompts < len(unique):
        order = np.random.default_rng(seed).permutation(len(unique))[:num_prompts]
        chosen = [unique[i] for i in order]
    return PromptSet(
        prompts=tuple(chosen),
        source=source,
        duplicates=len(filled) - len(unique),
        blank=len(values) - len(filled),
        sha256=hashlib.sha256("\n".join(chosen).encode()).hexdigest(),
    )


def _is_file_name(source: str, path: Path) -> bool:
    if not source.strip():
        raise PromptError(f"no prompts given, the source is {source!r}; pass a file or a Hugging Face dataset id")
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name too long for a file: somebody passed the prompt itself
        exists = False
    return exists or path.suffix.lower() in KINDS or not _HUB_ID.fullmatch(source)


def _from_hub(source: str, column: str | None, split: str, revision: str | None) -> list[str | None]:
    import datasets

    _check_reachable(source, revision)
    try:
        dataset = datasets.load_dataset(source, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as err:
        raise PromptError(
            f"{source}: dataset cannot be loaded, split {split!r}, revision {revision!r} ({one_line(err)}); "
            "check these, or save its prompts as .txt and pass that file"
        ) from err
    return text_values(source, dataset, column)


def _check_reachable(source: str, revision: str | None) -> None:
    """Ask once for the dataset's card: `load_dataset` tries for half a minute, and logs each attempt."""
    from huggingface_hub import HfApi, errors

    try:
        HfApi().dataset_info(source, revision=revision, timeout=_HUB_TIMEOUT_S)
    except errors.OfflineModeIsEnabled:
        return  # a copy in the cache may do
    except (errors.HTTPError, OSError, ValueError) as err:
        raise PromptError(
            f"{source}: neither a file nor a dataset that can be reached ({one_line(err)}): no network or a wrong id; "
            f"check both, set HF_HUB_OFFLINE=1 to use a cached copy, or pass one of {', '.join(KINDS)}"
        ) from err
