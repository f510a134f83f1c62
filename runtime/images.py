"""Images to PNG files that say what they are: prompt, seed, schedule and weights stand in the file's own text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..profiles.strict import write_atomic

if TYPE_CHECKING:
    from .loop import Engine


def facts_of(engine: Engine, prompt: str, seed: int, negative_prompt: str | None = None) -> dict[str, str]:
    """What makes an image what it is, as text for its file."""
    manifest = engine.manifest
    return {
        "prompt": prompt,
        **({} if negative_prompt is None else {"negative_prompt": negative_prompt}),
        "seed": str(seed),
        "schedule_sha256": manifest.schedule_sha256,
        "policy": manifest.policy,
        "model": engine.profile.name,
        "weights": json.dumps(manifest.weights, sort_keys=True),
        "toprovar": manifest.toprovar,
    }


def holds(path: Path, text: dict[str, str]) -> bool:
    """Whether a file is a whole PNG with exactly this text."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if dict(getattr(image, "text", {})) != text:
                return False
            # its end may be missing
            image.load()
            return True
    except (OSError, SyntaxError):
        # the latter where a part of the file is broken
        return False


def save_png(path: Path, pixels: NDArray[np.uint8], text: dict[str, str]) -> None:
    """Write `[h, w, 3]` RGB with text chunks; same input, same bytes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    write_atomic(path, buffer.getvalue())
