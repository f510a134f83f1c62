"""Training state in safetensors shards of at most 15 MB, so that training can move between machines in small files.

A checkpoint is a folder of `NAME-00000.safetensors` shards and `NAME.json`, which lists them and is written last: without
it there is no checkpoint. Tensors larger than a shard are cut along their flattened length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...profiles.errors import CheckpointError
from ...profiles.strict import write_atomic

SHARD_BYTES = 15_000_000 - 100_000  # room for the header


def save_shards(folder: Path, name: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors (any dtype, copied to the CPU) and JSON-able `meta`."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for key, tensor in tensors.items():
        flat = tensor.detach().reshape(-1).cpu()
        per_shard = SHARD_BYTES // flat.element_size()
        for part, piece in enumerate(flat.split(per_shard)):
            size = piece.numel() * piece.element_size()
            if used + size > SHARD_BYTES:
                shards.append({})
                used = 0
            shards[-1][f"{key}@{part}"] = piece.clone()
            used += size
    for index, shard in enumerate(shards):
        save_file(shard, folder / f"{name}-{index:05d}.safetensors")
    shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
    header = {"shards": len(shards), "shapes": shapes, "meta": meta}
    write_atomic(folder / f"{name}.json", json.dumps(header).encode())


def load_shards(folder: Path, name: str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_shards` wrote.

    Raises:
        CheckpointError: There is no such checkpoint, or a shard is missing or damaged.
    """
    header_path = folder / f"{name}.json"
    if not header_path.exists():
        raise CheckpointError(f"{header_path}: no such checkpoint")
    header = json.loads(header_path.read_text())
    pieces: dict[str, dict[int, Tensor]] = {}
    for index in range(header["shards"]):
        path = folder / f"{name}-{index:05d}.safetensors"
        try:
            shard = load_file(path, device=str(device))
        except Exception as problem:
            raise CheckpointError(f"{path}: shard {index + 1} of {header['shards']} cannot be read ({problem})") from problem
        for key, piece in shard.items():
            whole, part = key.rsplit("@", 1)
            pieces.setdefault(whole, {})[int(part)] = piece
    tensors = {
        key: torch.cat([pieces[key][part] for part in sorted(pieces[key])]).reshape(shape)
        for key, shape in header["shapes"].items()
    }
    return tensors, header["meta"]


def has_shards(folder: Path, name: str) -> bool:
    """Whether a complete checkpoint of that name exists."""
    return (folder / f"{name}.json").exists()
