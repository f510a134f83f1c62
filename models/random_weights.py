"""Seeded random weights of any module, for latency work without a checkpoint.

Each tensor is drawn from its own generator, seeded by the seed and the tensor's name: its values depend neither on the
order of the modules nor on the number of threads that draw. The scales are those of a common initialisation, so
activations stay finite through 40 layers; the images are noise.
"""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_STD = 0.02
_SCALE_MUL = math.log(4.0)  # where the official model starts its per-head attention scale


def random_weights(module: nn.Module, seed: int, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> None:
    """Replace all tensors of a module's state dict, as a rule on the meta device, by random ones.

    Matrices, embeddings and free vectors are normal with standard deviation 0.02, convolutions `fan_in ** -0.5`; biases
    and buffers are 0, weights of norms 1, attention scales (`scale_mul_1H11`) log 4. The same arguments give the same
    values for one version of PyTorch; another dtype or kind of device gives others. Buffers outside the state dict stay
    as they are: the caller makes them.

    Args:
        module: Any; tensors of integers are set to 0.
        seed: Any integer.
        dtype: Of all floating-point tensors, drawn in it directly; None keeps each tensor's.
        device: Where the weights shall be.
    """
    tensors = module.state_dict(keep_vars=True)
    # one tensor under two names stays one: the second name gets the values of the first
    first_name = {id(tensor): name for name, tensor in reversed(tensors.items())}
    names = list(dict.fromkeys(first_name[id(tensor)] for tensor in tensors.values()))
    # PyTorch draws in one thread, without the interpreter's lock
    with ThreadPoolExecutor() as pool:
        drawn = dict(zip(names, pool.map(lambda name: _draw(module, name, seed, dtype, device), names), strict=True))
    state = {name: drawn[first_name[id(tensor)]] for name, tensor in tensors.items()}
    module.load_state_dict(state, strict=True, assign=True)


def _draw(module: nn.Module, name: str, seed: int, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    import torch

    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    like = getattr(owner, leaf)
    kind = dtype if dtype is not None and like.is_floating_point() else like.dtype
    tensor = torch.empty(like.shape, dtype=kind, device=device)
    if leaf == "scale_mul_1H11":
        return tensor.fill_(_SCALE_MUL)
    if not isinstance(like, torch.nn.Parameter) or leaf.endswith("bias"):
        return tensor.zero_()
    if leaf == "weight" and like.dim() == 1 and "norm" in f"{path.rpartition('.')[2]} {type(owner).__name__}".lower():
        return tensor.fill_(1.0)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    is_conv = isinstance(owner, torch.nn.modules.conv._ConvNd) and leaf == "weight"
    return tensor.normal_(0.0, like[0].numel() ** -0.5 if is_conv else _STD, generator=generator)
