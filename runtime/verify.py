"""`toprovar doctor --verify-tensorrt`: build the tiny model as plans, draw with them, compare with ONNX Runtime.

The bundles are built by the command itself, in processes of their own: stages share files, not code.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..profiles.errors import ToprovarError
from ..profiles.manifest import EngineManifest
from ..profiles.tables import table
from .loop import FloatArray
from .open_engine import open_engine
from .text import TextSource

POLICY = "noguide-2"
PROMPTS = ("a photo of a red star", "a photo of a blue circle above a green square")
SEEDS = (0, 1)
LEAST_PSNR = {"fp32": 35.0, "fp16": 25.0, "bf16": 20.0}
"""dB. A bit that rounding flips changes all that follows it: on these prompts torch in fp16 is 40.8 dB, in bf16 26.7 dB
from torch in fp32, while images of other seeds are 17.2 dB and of other prompts 15.5 dB away."""
HEAD = ["target", "precision", "max difference", "PSNR dB", "ms an image", "verdict"]


def verify(reasons: Mapping[str, str]) -> int:
    """Print what is usable and how far its images are from the onnx engine's.

    Args:
        reasons: Of each target, why it cannot be used here, or nothing.

    Returns:
        0 where at least one target is usable and all usable ones agree, else 1.
    """
    for target, reason in reasons.items():
        print(f"{target}: {reason or 'usable'}")
    usable = [target for target, reason in reasons.items() if not reason]
    if not usable:
        print("nothing to verify; a flavour needs its package, an NVIDIA driver and a GPU it has code for")
        return 1
    with tempfile.TemporaryDirectory(prefix="toprovar-verify-") as folder:
        reference, _, _ = _draw("onnx", Path(folder))
        rows, agrees = [HEAD], []
        for target in usable:
            row, good = _compare(target, Path(folder), reference)
            rows.append(row)
            agrees.append(good)
    print(table(rows))
    return 0 if all(agrees) else 1


def _compare(target: str, folder: Path, reference: FloatArray) -> tuple[list[str], bool]:
    """One row of the table, and whether the images agree; a target that fails is told, the others go on."""
    try:
        pixels, precision, latency_ms = _draw(target, folder)
    except ToprovarError as problem:
        print(f"{target}: {problem}", file=sys.stderr)
        return [target, "-", "-", "-", "-", "failed"], False
    difference = float(np.abs(pixels - reference).max())
    error = float(np.mean((pixels.astype(np.float64) - reference) ** 2))
    # the range -1 to 1 is 2 wide
    psnr = 10 * float(np.log10(4 / error)) if error else float("inf")
    good = bool(np.isfinite(pixels).all()) and psnr >= LEAST_PSNR[precision]
    cells = [f"{difference:.4f}", "same" if error == 0 else f"{psnr:.1f}", f"{latency_ms:.1f}"]
    return [target, precision, *cells, "agrees" if good else f"differs, below {LEAST_PSNR[precision]:.0f} dB"], good


def _draw(target: str, folder: Path) -> tuple[FloatArray, str, float]:
    """Both images `[2, 3, h, w]`, the precision, and milliseconds an image of a second, warm call."""
    bundle = folder / target
    _build(["--policy", POLICY, "--target", target, "--out", str(bundle)])
    engine = open_engine(bundle)
    features = TextSource(engine).encode(PROMPTS)
    engine.generate(features.text, features.lengths, SEEDS)
    images = engine.generate(features.text, features.lengths, SEEDS)
    latency_ms = sum(images.milliseconds.values()) / len(SEEDS)
    assert images.pixels is not None, "these engines hand out pixels"
    return images.pixels, EngineManifest.load(bundle).precision, latency_ms


def _build(arguments: Sequence[str]) -> None:
    print(f"build-engine {' '.join(arguments)}", file=sys.stderr)
    command = [sys.executable, "-m", f"{__package__.rsplit('.', 1)[0]}.compile.cli", *arguments]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise ToprovarError(f"build-engine ended with {done.returncode}, its error stands above")
