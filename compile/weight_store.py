"""One copy of the weights for all subgraphs: ONNX initializers that point into one safetensors file.

A safetensors file is a header and raw tensors, so an initializer that names the file, an offset and a length is plain ONNX
external data: ONNX Runtime maps it, any tool opens it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..profiles.manifest import WEIGHTS

# smaller constants stay in the graph, where shape inference reads them
EXTERNAL_BYTES = 1024
CONSTANTS = "constants."
"""Names of tensors that are no module's; the rest is their content's digest."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A model proto without its large weights, and where those stand in the store."""

    proto: Any
    weights: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class WeightStore:
    """Collects tensors under stable names and lays them out in one file."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[int, torch.Size], str] = {}

    def register(self, prefix: str, module: nn.Module) -> None:
        """Make a module's parameters known as `prefix.name`."""
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                key = f"{prefix}.{name}"
                self._names[tensor.data_ptr(), tensor.shape] = key
                self.tensors[key] = tensor.detach()

    def name_of(self, value: Tensor) -> str:
        """The name under which a tensor is stored; one that is no parameter is stored by its content."""
        known = self._names.get((value.data_ptr(), value.shape))
        if known is not None:
            return known
        # a reshaped parameter shares its memory, and safetensors stores no memory twice
        value = value.detach().clone(memory_format=torch.contiguous_format)
        # numpy has no bfloat16
        array = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
        kind = f"{value.dtype}{tuple(value.shape)}".removeprefix("torch.")
        digest = hashlib.sha256(kind.encode() + array.tobytes()).hexdigest()[:16]
        name = CONSTANTS + digest
        self.tensors.setdefault(name, value)
        return name

    def save(self, path: Path) -> dict[str, tuple[int, int]]:
        """Write the file; returns offset and length in bytes of every tensor."""
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path)
        path.chmod(0o644)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        start = 8 + size
        return {
            name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }


def externalize(model: Any, store: WeightStore) -> dict[str, str]:
    """Point the large initializers of an exported model (`onnx_ir.Model`) at the store, in place.

    Returns:
        The store's name of each external initializer; offsets are filled in by `place` once the file is laid out.
    """
    names = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor.nbytes < EXTERNAL_BYTES:
            continue
        raw = getattr(tensor, "raw", None)
        content = raw if isinstance(raw, Tensor) else torch.from_numpy(np.ascontiguousarray(tensor.numpy()))
        names[name] = store.name_of(content)
        value.const_value = _outside(name, tensor)
    return names


def place(proto: Any, names: dict[str, str], layout: dict[str, tuple[int, int]]) -> None:
    """Fill in where each external initializer of a model proto lies, in place."""
    for initializer in proto.graph.initializer:
        if initializer.name in names:
            offset, length = layout[names[initializer.name]]
            fields = {"location": WEIGHTS, "offset": str(offset), "length": str(length)}
            del initializer.external_data[:]
            for key, value in fields.items():
                initializer.external_data.add(key=key, value=value)


def initializer(name: str, tensor: Tensor, store: WeightStore) -> tuple[Any, str | None]:
    """A tensor as an entry of a graph (`onnx.TensorProto`), and its name in the store if it stands there, see `externalize`."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor

    content = TorchTensor(tensor, name)
    if content.nbytes < EXTERNAL_BYTES:
        return ir.to_proto(content), None
    return ir.to_proto(_outside(name, content)), store.name_of(tensor)


def _outside(name: str, tensor: Any) -> Any:
    """An entry like an `onnx_ir` tensor, its numbers in the bundle's file; `place` fills in where."""
    import onnx_ir as ir

    return ir.ExternalTensor(WEIGHTS, 0, tensor.nbytes, tensor.dtype, name=name, shape=tensor.shape, base_dir="")
