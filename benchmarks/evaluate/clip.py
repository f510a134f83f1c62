"""CLIPScore through torchmetrics, where it and the weights of CLIP are at hand."""

from __future__ import annotations

from collections.abc import Callable

from ...profiles.errors import ToprovarError
from .outcome import Pixels

DEFAULT_MODEL = "openai/clip-vit-base-patch16"


def clip_scorer(model: str = DEFAULT_MODEL) -> Callable[[Pixels, str], float]:
    """A function of a uint8 image and its prompt to a score of 0 to 100.

    Args:
        model: Hub id or folder of CLIP.

    Raises:
        ToprovarError: torchmetrics, transformers or the weights are missing.
    """
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore
    except ImportError as problem:
        raise ToprovarError("CLIPScore comes from torchmetrics; run `pip install torchmetrics transformers`") from problem
    import torch

    try:
        metric = CLIPScore(model_name_or_path=model)
    except (OSError, ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise ToprovarError(f"--clip-model {model}: cannot be loaded ({reason}); name a folder with its weights") from problem

    def read(pixels: Pixels, prompt: str) -> float:
        with torch.inference_mode():
            return float(metric(torch.from_numpy(pixels.copy()).permute(2, 0, 1), prompt))

    return read
