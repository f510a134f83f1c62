"""SceneEval of a torch model on one device, over guidance strengths and temperatures.

    python -m toprovar.benchmarks.scene_eval --shards runs/tiny --cfg 2 3 4 --tau 0.5 1.0 | tail -1 | jq .

300 fixed prompts in six tasks, one image each at a fixed seed, read back by the scorer and judged as GenEval judges.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..models.infinity.generate import build_steps, generate
from ..models.infinity.vae import BsqVae
from ..models.noise import image_noise
from ..models.tiny.scene_eval import scene_prompts, score
from ..models.tiny.scorer import Scorer, decode
from ..models.tiny.shards import load_shards
from ..models.tiny.text import WordTokenizer
from ..models.tiny.transformer_training import TextImageModel
from ..profiles.baselines import baseline
from ..profiles.model import ModelProfile, load_profile


@torch.inference_mode()
def images_of(
    model: TextImageModel, vae: BsqVae, profile: ModelProfile, policy: str, prompts: list[str], seed: int
) -> torch.Tensor:
    """One image a prompt, `[B, 3, h, w]` in [-1, 1]; image i is drawn with seed + i."""
    device = next(model.parameters()).device
    encoded = WordTokenizer().encode(prompts, width=profile.text.max_length)
    text = model.text_encoder(torch.from_numpy(encoded.ids).to(device))
    lengths = torch.from_numpy(np.asarray(encoded.lengths)).to(device)
    tokens = sum(h * w for h, w in profile.sizes)
    noise = np.stack([image_noise(seed + i, tokens, profile.transformer.token_bits) for i in range(len(prompts))])
    steps = build_steps(model.transformer, profile, baseline(policy, profile))
    summed = generate(steps, text, lengths, torch.from_numpy(noise).to(device))
    return torch.as_tensor(vae.decoder(summed)).clamp(-1, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder of `toprovar.models.tiny.train`")
    parser.add_argument("--cfg", type=float, nargs="+", default=[3.0])
    parser.add_argument("--tau", type=float, nargs="+", default=[1.0])
    parser.add_argument("--policy", nargs="+", default=["dense"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="use the first N prompts of each task only")
    parser.add_argument("--sheet", type=Path, help="write the first images as one PNG")
    args = parser.parse_args()
    profile = load_profile("tiny")
    model, vae, scorer = TextImageModel(profile), BsqVae(profile.vae), Scorer()
    model.load_state_dict(load_shards(args.shards, "model")[0], strict=False)
    vae.load_state_dict(load_shards(args.shards, "vae")[0])
    scorer.load_state_dict(load_shards(args.shards, "scorer")[0])
    for module in (model, vae, scorer):
        module.to(args.device).eval()
    prompts = scene_prompts()
    if args.limit:
        prompts = [p for i, p in enumerate(prompts) if i % 50 < args.limit]
    results = []
    for policy in args.policy:
        for cfg in args.cfg:
            for tau in args.tau:
                chosen = profile.with_options(cfg=cfg, tau=tau)
                started, found, sheet = time.monotonic(), [], []
                for start in range(0, len(prompts), args.batch):
                    texts = [p.prompt for p in prompts[start : start + args.batch]]
                    images = images_of(model, vae, chosen, policy, texts, args.seed + start)
                    with torch.inference_mode():
                        found += decode(scorer(images))
                    sheet.append(images[:8].cpu())
                table = score(prompts, found)
                tasks = {name: round(share["accuracy"], 3) for name, share in table["tasks"].items()}
                overall = round(table["overall"]["accuracy"], 4)
                print(policy, cfg, tau, overall, tasks, f"{time.monotonic() - started:.1f} s", flush=True)
                results.append({"policy": policy, "cfg": cfg, "tau": tau, "overall": overall, "tasks": tasks})
                if args.sheet:
                    from PIL import Image

                    grid = torch.cat([torch.cat(list(row), dim=2) for row in sheet], dim=1)
                    array = ((grid + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                    Image.fromarray(array).save(args.sheet.with_stem(f"{args.sheet.stem}-{policy}-{cfg:g}-{tau:g}"))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
