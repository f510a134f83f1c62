"""Images to PNG files that say what they are: prompt, seed, schedule and weights stand in the file's own text."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..profiles.strict import write_atomic


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
