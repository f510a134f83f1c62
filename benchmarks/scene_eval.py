"""SceneEval of a torch model on one device, over guidance strengths and temperatures.

    python -m toprovar.benchmarks.scene_eval --shards runs/tiny --cfg 2 3 4 --tau 0.5 1.0 | tail -1 | jq .

300 fixed prompts in six tasks, one image each at a fixed seed, read back by the scorer and judged as GenEval judges.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..models.infinity.generate import build_steps, generate
from ..models.infinity.parts import infinity_parts
from ..models.infinity.vae import BsqVae
from ..models.noise import image_noise
from ..models.tiny.scene_eval import PROMPTS_PER_TASK, scene_prompts, score
from ..models.tiny.scorer import Scorer, decode
from ..models.tiny.shards import load_shards
from ..models.tiny.text import WordTokenizer
from ..models.tiny.transformer_training import TextImageModel
from ..profiles.baselines import baseline
from ..profiles.console import run_command
from ..profiles.model import ModelProfile, load_profile


class Parts(NamedTuple):
    """What a training leaves, on one device."""

    model: TextImageModel
    vae: BsqVae
    scorer: Scorer


def load_parts(shards: Path, device: str) -> Parts:
    """Read the checkpoints of all three stages."""
    profile = load_profile("tiny")
    parts = Parts(TextImageModel(profile), BsqVae(infinity_parts(profile)[1]), Scorer())
    for name, module in zip(("model", "vae", "scorer"), parts, strict=True):
        # the running average has no buffers; theirs are constants
        module.load_state_dict(load_shards(shards, name)[0], strict=name != "model")
        module.to(device).eval()
    return parts


@torch.inference_mode()
def images_of(parts: Parts, profile: ModelProfile, policy: str, prompts: list[str], seed: int) -> torch.Tensor:
    """One image a prompt, `[B, 3, h, w]` in [-1, 1]; image i is drawn with seed + i."""
    device = parts.model.transformer.pos_start.device
    encoded = WordTokenizer().encode(prompts, width=profile.text.max_length)
    text = parts.model.text_encoder(torch.from_numpy(encoded.ids).to(device))
    lengths = torch.from_numpy(encoded.lengths).to(device)
    tokens = sum(h * w for h, w in profile.sizes)
    bits = parts.model.transformer.config.token_bits
    noise = np.stack([image_noise(seed + i, tokens, bits) for i in range(len(prompts))])
    steps = build_steps(parts.model.transformer, profile, baseline(policy, profile))
    summed = generate(steps, text, lengths, torch.from_numpy(noise).to(device))
    return torch.as_tensor(parts.vae.decoder(summed)).clamp(-1, 1)


@torch.inference_mode()
def evaluate(parts: Parts, profile: ModelProfile, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge all prompts with one setting."""
    prompts = [p for i, p in enumerate(scene_prompts()) if i % PROMPTS_PER_TASK < (args.limit or PROMPTS_PER_TASK)]
    found, sheet = [], []
    for start in range(0, len(prompts), args.batch):
        texts = [p.prompt for p in prompts[start : start + args.batch]]
        images = images_of(parts, profile, policy, texts, args.seed + start)
        found += decode(parts.scorer(images))
        sheet.append(images[:8].cpu())
    if args.sheet:
        cfg, tau = (profile.sampling.per_scale(name, 1)[0] for name in ("cfg", "tau"))
        _save_sheet(args.sheet.with_stem(f"{args.sheet.stem}-{policy}-{cfg:g}-{tau:g}"), sheet)
    table = score(prompts, found)
    tasks = {name: round(share["accuracy"], 3) for name, share in table["tasks"].items()}
    return {"prompts": len(prompts), "overall": round(table["overall"]["accuracy"], 4), "tasks": tasks}


def _save_sheet(path: Path, rows: list[torch.Tensor]) -> None:
    from PIL import Image

    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows if len(row) == len(rows[0])], dim=1)
    Image.fromarray(((grid + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=Path, required=True, help="folder of `toprovar.models.tiny.train`")
    parser.add_argument("--cfg", type=float, nargs="+", default=[3.0])
    parser.add_argument("--tau", type=float, nargs="+", default=[1.0])
    parser.add_argument("--policy", nargs="+", default=["dense"], help="dense, skip-N, noguide-N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="use the first N prompts of each task only")
    parser.add_argument("--sheet", type=Path, help="write the first images as one PNG")


def run(args: argparse.Namespace) -> int:
    """Evaluate every combination, one line each."""
    profile, parts = load_profile("tiny"), load_parts(args.shards, args.device)
    results = []
    for policy, cfg, tau in itertools.product(args.policy, args.cfg, args.tau):
        record = {"policy": policy, "cfg": cfg, "tau": tau}
        record |= evaluate(parts, profile.with_options(cfg=cfg, tau=tau), policy, args)
        print(*(f"{key} {value}" for key, value in record.items()), sep="  ", flush=True)
        results.append(record)
    print(json.dumps(results))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("scene_eval", add_arguments, run, "SceneEval of training shards.", argv)


if __name__ == "__main__":
    sys.exit(main())
