"""Turn training shards into the fp16 files that ship in `profiles/tiny/`.

python -m toprovar.models.tiny.ship --shards runs/tiny --out profiles/tiny
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ...profiles.errors import CheckpointError
from ...profiles.model import load_profile
from ...profiles.strict import write_atomic
from ..infinity.parts import infinity_parts
from ..infinity.vae import BsqVae
from .scorer import Scorer
from .shards import load_shards
from .transformer_training import TextImageModel

LIMIT_BYTES = 24_000_000


def pack(module: nn.Module) -> bytes:
    """A state dict in safetensors, floating point in fp16, without tensors that share memory twice."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().half() if tensor.is_floating_point() else tensor.detach()
        if not torch.isfinite(value.float()).all():
            raise CheckpointError(f"{name}: does not fit fp16")
        tensors[name] = value.contiguous().clone()
    return bytes(save(tensors))


def main() -> int:
    parser = argparse.ArgumentParser(description="Training shards to the files that ship.")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    profile = load_profile("tiny")
    model, vae, scorer = TextImageModel(profile), BsqVae(infinity_parts(profile)[1]), Scorer()
    # the running average covers parameters; the buffers it lacks are constants
    missing = model.load_state_dict(load_shards(args.shards, "model")[0], strict=False).missing_keys
    assert all(name.endswith("zero_k_bias") for name in missing), missing
    vae.load_state_dict(load_shards(args.shards, "vae")[0])
    scorer.load_state_dict(load_shards(args.shards, "scorer")[0])
    parts = {"transformer": model.transformer, "text_encoder": model.text_encoder, "vae": vae, "scorer": scorer}
    packed = {name: pack(module) for name, module in parts.items()}
    total = sum(len(data) for data in packed.values())
    if total > LIMIT_BYTES:
        raise CheckpointError(f"the files weigh {total} bytes, the limit is {LIMIT_BYTES}")
    for name, data in packed.items():
        write_atomic(args.out / f"{name}.safetensors", data)
    print(f"{total / 1e6:.1f} MB in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
