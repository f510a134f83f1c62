"""Weights by path or by Hugging Face id: one local path comes out, and only the files that are needed come in.

A repository may hold many models (the released Infinity files lie side by side, 100 GB in all), so its list of files is
read first, and a choice that is not clear is an error that lists them.
"""

import re
from pathlib import Path

from ..profiles.errors import CheckpointError

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TIMEOUT_S = 10.0
_LISTED = 8


def fetch_weights(spec: str, revision: str | None = None) -> Path:
    """Local path of weights, downloaded if need be.

    Args:
        spec: An existing file or folder, which is returned as it is; or "owner/repo", "owner/repo:file.pth" or
            "owner/repo:folder" on Hugging Face. Without a file, the place must hold one weights file or an index of shards.
        revision: Branch, tag or commit; ignored for local paths.

    Returns:
        A file, or a folder for `open_checkpoint`. Without a network, a copy in the cache of `huggingface_hub` serves.

    Raises:
        CheckpointError: Neither a path nor a reachable repository, or no file there, or several.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path
    repository, _, inner = spec.partition(":")
    if not _REPOSITORY.fullmatch(repository) or repository.endswith(WEIGHT_SUFFIXES):
        raise CheckpointError(f"{spec}: no such file or folder; pass a path, 'owner/repo' or 'owner/repo:file'")
    inner = inner.strip("/")
    root = _download(spec, repository, inner, revision)
    if not (root / inner).exists():
        raise CheckpointError(f"{spec}: not in the cached copy {root}; connect to a network, or pass the path of a file")
    return root / inner


def _download(spec: str, repository: str, inner: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        files = list_files(repository, revision)
        wanted = None if files is None else _choose(spec, inner, files)
        root = snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=wanted is None)
    except CheckpointError:
        raise
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, ValueError) as err:
        reason = " ".join(str(err).split())[:160]
        raise CheckpointError(
            f"{spec}: neither a path nor a repository that can be reached, revision {revision!r} ({reason}); "
            "check the id and the network, or download the file by hand and pass its path"
        ) from err
    return Path(root)


def list_files(repository: str, revision: str | None) -> list[str] | None:
    """Names in the repository, None without a network; asked once, where a download would try for half a minute."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_S)
    except errors.HfHubHTTPError:
        raise  # the hub answered, and the answer was no
    except (errors.HTTPError, OSError):
        return None
    return [file.rfilename for file in info.siblings or ()]


def _choose(spec: str, inner: str, files: list[str]) -> list[str]:
    """The named file, or a folder's shards with their index, or its only weights file; safetensors come first."""
    if inner in files:
        return [inner]
    prefix = f"{inner}/" if inner else ""
    here = [name for name in files if name.startswith(prefix) and "/" not in name[len(prefix) :]]
    for suffix in WEIGHT_SUFFIXES:
        weights = [name for name in here if name.endswith(suffix)]
        index = [name for name in here if name.endswith(f"{suffix}.index.json")]
        if weights and (index or len(weights) == 1):
            return [*weights, *index]
    weights = [name for name in here if name.endswith(WEIGHT_SUFFIXES)]
    listed = ", ".join((weights or files)[:_LISTED]) or "none"
    problem = f"{len(weights)} weights files without an index" if weights else "no such weights"
    raise CheckpointError(f"{spec}: {problem} in the repository; name one as 'owner/repo:file' out of: {listed}")
