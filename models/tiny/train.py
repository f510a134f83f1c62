"""Train the tiny model from nothing: VAE, scorer, then the transformer with its text encoder.

    python -m toprovar.models.tiny.train --out runs/tiny --minutes 9      # again and again, until it says "finished"

Each stage leaves a checkpoint of shards of at most 15 MB in `--out`; a later run, also on another machine, goes on from
there. The transformer first learns from the coarse scales alone (a prefix of a block-causal sequence is exact, and costs a
fifth), then from all of them. One H100 needs about 25 minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ...profiles.model import ModelProfile, load_profile
from ..infinity.parts import infinity_parts
from ..infinity.vae import BsqVae
from .pace import Pace, Run
from .render import render
from .scorer import scorer_accuracy, train_scorer
from .shards import has_shards, load_shards, save_shards
from .transformer_training import Trainer, TrainingPlan
from .vae_training import reconstruction_psnr, train_vae


def log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def obtain_vae(args: argparse.Namespace, profile: ModelProfile, run: Run) -> BsqVae:
    """The VAE of `--out`, trained now where it is missing."""
    if not has_shards(args.out, "vae"):
        pace = Pace(steps=args.vae_steps, seconds=args.vae_minutes * 60, batch=args.vae_batch)
        trained = train_vae(profile, pace, run)
        quality = reconstruction_psnr(trained, profile, 256, args.seed + 1, run.device)
        run.log(f"vae: {quality:.2f} dB on fresh scenes after {pace.step} steps")
        save_shards(args.out, "vae", trained.state_dict(), {"steps": pace.step, "psnr_db": quality})
    vae = BsqVae(infinity_parts(profile)[1])
    vae.load_state_dict(load_shards(args.out, "vae")[0])
    return vae.to(run.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def obtain_scorer(args: argparse.Namespace, run: Run) -> None:
    """Train the scorer where it is missing."""
    if has_shards(args.out, "scorer"):
        return
    generator = torch.Generator(run.device).manual_seed(args.seed)
    scorer = train_scorer(
        run.device,
        steps=args.scorer_steps,
        batch=args.scorer_batch,
        generator=generator,
        log=run.log,
        draw=run.compile(render),
    )
    exact = scorer_accuracy(scorer, 4096, args.seed + 1, run.device)
    run.log(f"scorer: {exact:.4f} exact on fresh scenes")
    save_shards(args.out, "scorer", scorer.state_dict(), {"steps": args.scorer_steps, "exact": exact})


def train_transformer(args: argparse.Namespace, profile: ModelProfile, run: Run, deadline: float) -> bool:
    """Go on with the transformer until its pace or the deadline ends; True where it is finished."""
    plan = TrainingPlan(
        scenes=args.scenes,
        coarse_batch=args.coarse_batch,
        full_batch=args.full_batch,
        coarse_share=args.coarse_share,
        learning_rate=args.learning_rate,
    )
    pace = Pace(steps=args.steps, seconds=args.transformer_minutes * 60, batch=args.full_batch)
    trainer = Trainer(profile, plan, pace, obtain_vae(args, profile, run), run)
    trainer.resume(args.out)
    finished = trainer.train(deadline, args.save_minutes * 60, lambda: trainer.save(args.out))
    trainer.save(args.out)
    run.log("transformer: finished" if finished else f"stopped at step {pace.step}; run the same command again to go on")
    return finished


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled tiny model; resumable.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after this long, ready to resume")
    parser.add_argument("--stages", default="vae,scorer,transformer", help="comma-separated, in this order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="plain eager functions, for short checks")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--vae-minutes", type=float, default=3.0)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--scorer-steps", type=int, default=3000)
    parser.add_argument("--scorer-batch", type=int, default=256)
    parser.add_argument("--scenes", type=int, default=200_000, help="scenes to encode once and train on")
    parser.add_argument("--steps", type=int, default=10_000, help="most steps of the transformer")
    parser.add_argument("--transformer-minutes", type=float, default=17.0, help="longest time of the transformer")
    parser.add_argument("--coarse-share", type=float, default=0.5, help="share of it spent on the scales up to 16 x 16")
    parser.add_argument("--coarse-batch", type=int, default=512)
    parser.add_argument("--full-batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--save-minutes", type=float, default=4.0, help="how often the shards are written")
    return parser.parse_args()


def main() -> int:
    args, started = parse(), time.monotonic()
    profile = load_profile("tiny")
    torch.set_float32_matmul_precision("high")
    run = Run(device=torch.device(args.device), seed=args.seed, log=log, compiled=not args.no_compile)
    for stage in args.stages.split(","):
        if stage == "vae":
            obtain_vae(args, profile, run)
        elif stage == "scorer":
            obtain_scorer(args, run)
        elif stage == "transformer":
            train_transformer(args, profile, run, started + args.minutes * 60)
        else:
            raise SystemExit(f"unknown stage {stage!r}; the stages are vae, scorer, transformer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
