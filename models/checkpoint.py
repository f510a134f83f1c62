"""Weights from disk: memory-mapped, every name and shape checked, no tensor copied unless its dtype changes.

The official loader ignores names that do not match and leaves those weights at their random start, which gives noise
instead of an error. Here one error lists all that differs. Files are mapped, so opening a checkpoint of 9 GB reads only
its header, and pickled objects other than tensors are refused, as loading them could run code.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..profiles.errors import CheckpointError
from ..profiles.manifest import sha256_of
from .fetch import WEIGHT_SUFFIXES, fetch_weights
from .random_weights import random_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "OFFICIAL_EXTRAS",
    "Checkpoint",
    "check_keys",
    "fetch_weights",
    "load_into",
    "open_checkpoint",
    "random_weights",
]

# derived tables and a counter of training that the official files may hold; generation needs none of them
OFFICIAL_EXTRAS = frozenset(
    {
        "lvl_1L",
        "attn_bias_for_masking",
        "Infinity_visible_kvlen",
        "Infinity_invisible_qlen",
        "quantize.ema_vocab_hit_SV",
    }
)
_LISTED = 8


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, "Tensor"]):
    """Tensors by name, mapped from `files`; a mapping itself.

    Attributes:
        path: The file or folder that was opened.
        tensors: On the CPU, in the stored dtype. Mapped privately: writing to one does not change the file.
        files: The weights files in the order of their names.
        sha256: Hex digest by file name, empty until `digest()` is called.
    """

    path: Path
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]
    sha256: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def part(self, prefix: str) -> Checkpoint:
        """The tensors under a prefix, without it, where a file holds several models; itself where no name begins with it."""
        found = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return Checkpoint(self.path, found, self.files, self.sha256) if found else self

    def digest(self) -> dict[str, str]:
        """SHA-256 of every file by its name; the first call reads all of them."""
        for file in self.files:
            if file.name not in self.sha256:
                self.sha256[file.name] = sha256_of(file)
        return dict(self.sha256)


def open_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Map the weights in a file, in a folder with an index of shards, or in a folder with one weights file.

    Args:
        path: A .safetensors, .pth, .pt or .bin file, or a folder.
        key: Entry that holds the state dict where a PyTorch file nests it, as "vae" in the released VAE files. A file
            without that entry is taken as flat.

    Raises:
        CheckpointError: Nothing there, a shard or a tensor of the index is missing, or a file is damaged, foreign, or
            holds more than tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; expected weights ({', '.join(WEIGHT_SUFFIXES)})")
    if not path.is_dir():
        return Checkpoint(path, _read_file(path, key), (path,))
    indexes = [*sorted(path.glob("*.safetensors.index.json")), *sorted(path.glob("*.bin.index.json"))]
    if indexes:
        return _open_index(path, indexes[0], key)
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) != 1:
        found = f"{len(files)} weights files: {_cut([f.name for f in files])}" if files else "no weights file"
        raise CheckpointError(f"{path}: folder with {found}; pass the file, or a folder with one file or an index JSON")
    return Checkpoint(path, _read_file(files[0], key), (files[0],))


def _open_index(folder: Path, index: Path, key: str | None) -> Checkpoint:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
        # an index decides which files are opened, so it may only name its neighbours
        strange = [shard for shard in shards if Path(shard).name != shard]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"{index}: is not an index of shards ({_reason(err)}); expected a 'weight_map'") from err
    if strange:
        raise CheckpointError(f"{index}: shards must lie beside the index, got {_cut(strange)}")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} of {len(shards)} shards are missing: {_cut(missing)}; fetch them")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        content = _read_file(folder / shard, key)
        names = [name for name, of in shard_of.items() if of == shard]
        absent = [name for name in names if name not in content]
        if absent:
            raise CheckpointError(f"{folder / shard}: lacks what {index.name} says it holds: {_cut(absent)}; fetch it anew")
        tensors.update((name, content[name]) for name in names)
    return Checkpoint(folder, tensors, tuple(folder / shard for shard in shards))


def _read_file(path: Path, key: str | None) -> dict[str, Tensor]:
    if path.suffix not in WEIGHT_SUFFIXES:
        expected = ", ".join(WEIGHT_SUFFIXES)
        raise CheckpointError(f"{path}: cannot tell the format of {path.suffix!r}; expected one of {expected}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, key)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path}: damaged, cut short or not a safetensors file ({_reason(err)}); fetch it anew") from err


def _read_torch(path: Path, key: str | None) -> dict[str, Tensor]:
    import torch

    mappable = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 are no archives and are read into memory
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as err:
        if mappable or "Unsupported" in str(err):
            raise CheckpointError(
                f"{path}: holds Python objects beside tensors, and loading those could run code; where you trust the file, "
                "save its tensors alone: torch.save(model.state_dict(), ...)"
            ) from err
        raise _damaged(path, err) from err
    except Exception as err:  # bytes that are no pickle can make the unpickler raise anything
        raise _damaged(path, err) from err
    return _flat_tensors(path, content, key)


def _damaged(path: Path, err: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, cut short or not a PyTorch file ({_reason(err)}); fetch it anew")


def _flat_tensors(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    import torch

    if key is not None and isinstance(content, dict) and isinstance(content.get(key), dict):
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds {type(content).__name__}, expected a dict of tensors: a state dict")
    nested = [str(name) for name, value in content.items() if isinstance(value, dict)]
    if nested:
        wanted = "" if key is None else f" {key!r} is not among them;"
        raise CheckpointError(f"{path}: holds nested entries {_cut(nested)};{wanted} pass the state dict's entry as `key`")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{path}: entries are not tensors: {_cut(others)}; save the state dict alone")
    return {str(name): tensor.detach() for name, tensor in content.items()}


def check_keys(
    name: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignore: frozenset[str] = OFFICIAL_EXTRAS,
) -> None:
    """Compare names and shapes, and tell all differences at once.

    Args:
        name: What the message calls the weights.
        expected: Shapes by name that the model needs, all of them.
        found: Shapes by name that the weights have.
        ignore: Names that may be there although the model does not know them.

    Raises:
        CheckpointError: Names are missing or unexpected, or shapes differ; at most 8 of each kind are listed.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected and key not in ignore]
    shapes = [
        f"{key} {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = [f"{len(keys)} {kind}: {_cut(keys)}" for kind, keys in kinds.items() if keys]
    if told:
        raise CheckpointError(f"{name}: weights do not fit the model: {'; '.join(told)}; choose the profile they belong to")


def load_into(
    module: nn.Module,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    *,
    device: torch.device | str = "cpu",
    ignore: frozenset[str] = OFFICIAL_EXTRAS,
) -> None:
    """Give a module that was built on the meta device its weights; on the CPU an equal dtype keeps the mapped tensor.

    `cfg_uncond`, one row a text token, is cut to the model's `text_maxlen` as by the official loader. Where it has fewer
    rows it is padded with zeros; the official loader pads with the random, never trained start of its own parameter.
    Buffers outside the state dict stay as they are: the caller makes them.

    Args:
        module: Its state dict gives the names and shapes, all of which must be in `checkpoint`.
        checkpoint: Names outside the module's and `ignore` are an error.
        dtype: Of all floating-point tensors; None keeps what is stored. Integers are never cast.
        device: Where the weights shall be.
        ignore: See `check_keys`.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = {name: _fit_rows(name, tensor, expected.get(name)) for name, tensor in checkpoint.items()}
    check_keys(str(checkpoint.path), expected, {name: tuple(t.shape) for name, t in tensors.items()}, ignore)
    state = {name: _cast(tensors[name], dtype, device) for name in expected}
    module.load_state_dict(state, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in module.state_dict().values())


def _fit_rows(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    if shape is None or name.rpartition(".")[2] != "cfg_uncond" or tensor.shape[1:] != shape[1:]:
        return tensor
    rows = min(tensor.shape[0], shape[0])
    if rows == shape[0]:
        return tensor[:rows]
    padded = tensor.new_zeros(shape)
    padded[:rows] = tensor
    return padded


def _cast(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _cut(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _reason(err: BaseException) -> str:
    return (" ".join(str(err).split()) or type(err).__name__)[:160]
