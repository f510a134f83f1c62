"""Engines side by side on the same prompts and seeds: images, fidelity to the first engine, latency, SceneEval.

    python -m toprovar.benchmarks.side_by_side --engines out/dense out/engine --prompts prompts.txt --picture side.png
    python -m toprovar.benchmarks.side_by_side --engines out/dense out/skip-1 --scene-eval | tail -1 | jq .

Every image is drawn by all engines in turn, so that drifts of the machine fall on all alike. PSNR and SSIM compare the
uint8 images with those of the first engine; SceneEval reads the objects back and judges them as GenEval does. The last
line of stdout is everything as JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..profiles.console import run_command
from ..profiles.errors import ToprovarError
from ..profiles.tables import table
from ..runtime.cli import read_prompts
from ..runtime.loop import Engine
from ..runtime.open_engine import open_engine
from ..runtime.text import TextSource

Pixels = NDArray[np.uint8]
PICTURE_PROMPTS = 8


@dataclass(slots=True)
class Results:
    """What one engine did on all prompts."""

    latency_ms: list[float] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    detections: list[Any] = field(default_factory=list)
    pictures: list[Pixels] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", type=Path, nargs="+", required=True, help="bundles; the first is the reference")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="text file, one prompt a line")
    source.add_argument("--scene-eval", action="store_true", help="the 300 fixed prompts of SceneEval, and their score")
    parser.add_argument("--limit", type=int, help="of SceneEval, the first N prompts of each task only")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; prompt i is drawn with seed + i")
    parser.add_argument("--warm-up", type=int, default=2, help="images drawn before timing (default: 2)")
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")
    parser.add_argument("--picture", type=Path, help="PNG with the first prompts, a row an engine")


def run(args: argparse.Namespace) -> int:
    """Draw, compare, print."""
    from tqdm import tqdm

    if importlib.util.find_spec("skimage") is None:
        raise ToprovarError("SSIM comes from scikit-image; run `pip install scikit-image` (or toprovar[dev])")
    judged, prompts = _prompts(args)
    engines = [open_engine(folder, args.threads) for folder in args.engines]
    texts = [TextSource(engine) for engine in engines]
    scorer = _scorer() if judged is not None else None
    results = [Results() for _ in engines]
    for index in tqdm(range(-args.warm_up, len(prompts)), unit="prompt", disable=None):
        prompt, seed = prompts[max(index, 0)], args.seed + max(index, 0)
        reference: Pixels | None = None
        for engine, text, result in zip(engines, texts, results, strict=True):
            features = text.encode([prompt])
            images = engine.generate(features.text, features.lengths, [seed])
            if index < 0:
                continue
            pixels = images.uint8()[0]
            reference = pixels if reference is None else reference
            _record(result, pixels, reference, sum(images.milliseconds.values()), scorer)
    rows, record = _summary(engines, results, judged)
    print(table(rows))
    if args.picture:
        _picture(args.picture, engines, results, prompts)
        print(f"picture  {args.picture}")
    print(json.dumps({**_machine(args), "prompts": len(prompts), "seed": args.seed, "engines": record}))
    return 0


def _prompts(args: argparse.Namespace) -> tuple[list[Any] | None, list[str]]:
    if args.scene_eval:
        from ..models.tiny.scene_eval import PROMPTS_PER_TASK, scene_prompts

        limit = args.limit or PROMPTS_PER_TASK
        judged = [prompt for i, prompt in enumerate(scene_prompts()) if i % PROMPTS_PER_TASK < limit]
        return judged, [prompt.prompt for prompt in judged]
    return None, read_prompts(args.prompts)


def _scorer() -> Any:
    import torch

    from ..models.checkpoint import load_into, open_checkpoint
    from ..models.tiny.scorer import Scorer
    from ..profiles.model import FOLDER

    torch.set_num_threads(1)
    with torch.device("meta"):
        scorer = Scorer()
    load_into(scorer, open_checkpoint(FOLDER / "tiny" / "scorer.safetensors"), torch.float32)
    return scorer.eval()


def _record(result: Results, pixels: Pixels, reference: Pixels, latency_ms: float, scorer: Any) -> None:
    from skimage.metrics import structural_similarity

    result.latency_ms.append(latency_ms)
    error = float(np.mean((pixels.astype(np.float64) - reference) ** 2))
    result.psnr_db.append(float("inf") if error == 0 else 10 * float(np.log10(255**2 / error)))
    result.ssim.append(float(structural_similarity(pixels, reference, channel_axis=-1, data_range=255)))
    if len(result.pictures) < PICTURE_PROMPTS:
        result.pictures.append(pixels)
    if scorer is not None:
        import torch

        from ..models.tiny.scorer import decode

        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            result.detections += decode(scorer(image))


def _summary(engines: Sequence[Engine], results: Sequence[Results], judged: Any) -> tuple[list[list[str]], list[Any]]:
    rows = [["policy", "FLOPs", "latency ms (min-max)", "speed-up", "PSNR dB", "SSIM", "SceneEval (95 %)"]]
    record = []
    base = statistics.median(results[0].latency_ms)
    for engine, result in zip(engines, results, strict=True):
        median, psnr, ssim = statistics.median(result.latency_ms), _mean(result.psnr_db), _mean(result.ssim)
        entry: dict[str, Any] = {
            "policy": engine.manifest.policy,
            "flops_speedup": round(engine.manifest.flops_speedup, 3),
            "latency_ms": [round(v, 1) for v in (median, min(result.latency_ms), max(result.latency_ms))],
            "psnr_db": None if psnr is None else round(psnr, 2),
            "ssim": None if ssim is None else round(ssim, 4),
            "schedule_sha256": engine.manifest.schedule_sha256,
        }
        scene = "-"
        if judged is not None:
            from ..models.tiny.scene_eval import score

            found = score(judged, result.detections)
            overall = found["overall"]
            entry["scene_eval"] = {
                "overall": overall["accuracy"],
                "tasks": {name: share["accuracy"] for name, share in found["tasks"].items()},
            }
            scene = f"{overall['accuracy']:.3f} ({overall['low']:.3f}-{overall['high']:.3f})"
        record.append(entry)
        span = f"{median:.0f} ({min(result.latency_ms):.0f}-{max(result.latency_ms):.0f})"
        shown = ["same" if v is None else form.format(v) for v, form in ((psnr, "{:.1f}"), (ssim, "{:.3f}"))]
        speedups = [f"{engine.manifest.flops_speedup:.2f}x", span, f"{base / median:.2f}x"]
        rows.append([engine.manifest.policy, *speedups, *shown, scene])
    return rows, record


def _mean(values: Sequence[float]) -> float | None:
    """Mean of the finite values; None where every image is the same as the reference."""
    finite = [value for value in values if np.isfinite(value)]
    return None if not finite or all(value == 1 for value in finite) else statistics.fmean(finite)


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    import onnxruntime

    cores = args.threads or len(os.sched_getaffinity(0))
    return {"machine": platform.machine(), "threads": cores, "onnxruntime": onnxruntime.__version__}


def _picture(path: Path, engines: Sequence[Engine], results: Sequence[Results], prompts: Sequence[str]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = len(results[0].pictures)
    figure, axes = plt.subplots(len(engines), columns, figsize=(1.9 * columns, 2.1 * len(engines) + 0.4), squeeze=False)
    for row, (engine, result) in enumerate(zip(engines, results, strict=True)):
        median = statistics.median(result.latency_ms)
        for column, pixels in enumerate(result.pictures):
            axis = axes[row][column]
            axis.imshow(pixels)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title("\n".join(_wrapped(prompts[column])), fontsize=7)
        axes[row][0].set_ylabel(f"{engine.manifest.policy}\n{median:.0f} ms", fontsize=9)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text.removeprefix("a photo of "), 24)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("side_by_side", add_arguments, run, "Engines side by side on the same prompts.", argv)


if __name__ == "__main__":
    sys.exit(main())
