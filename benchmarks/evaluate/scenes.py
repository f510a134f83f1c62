"""SceneEval of engines: shares with intervals, and the difference to the reference from the same prompts and seeds.

Two engines draw the same image from the same seed but for what the schedule changes, so most images are right in both or wrong
in both. The difference is taken from the pairs that disagree: its interval (Bonett and Price 2012, an adjusted Wald interval
for paired shares) is several times narrower than those of the two shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...models.tiny.scene_eval import PROMPTS_PER_TASK, ScenePrompt, judge, scene_prompts, score
from ...profiles.errors import PromptError
from ...profiles.model import ModelProfile
from .outcome import Pixels

Z95 = 1.959964
POINT = 0.01
"""One point of SceneEval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """An engine against the reference, image by image.

    Attributes:
        gained: Images right with the engine only.
        lost: Images right with the reference only.
        difference: Of the shares, engine minus reference.
        low: Lower end of the 95 % interval.
        high: Upper end.
        images_for_a_point: Images that make the interval reach one point to either side, at this share of disagreement.
    """

    gained: int
    lost: int
    difference: float
    low: float
    high: float
    images_for_a_point: int


def paired(right: Sequence[bool], reference: Sequence[bool]) -> Paired:
    """Difference of two shares seen on the same images.

    Args:
        right: Of the engine, one an image, at least one.
        reference: Of the reference, in the same order.
    """
    pairs = list(zip(right, reference, strict=True))
    gained, lost, count = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), len(pairs)
    # one image more in either kind of disagreement: no disagreement seen is not none at all
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    variance = up + down - (up - down) ** 2
    half = Z95 * math.sqrt(variance / (count + 2))
    return Paired(
        gained=gained,
        lost=lost,
        difference=(gained - lost) / count,
        low=max(-1.0, up - down - half),
        high=min(1.0, up - down + half),
        images_for_a_point=math.ceil(variance * (Z95 / POINT) ** 2) - 2,
    )


def need_texts(profile: ModelProfile, suite: str) -> None:
    """Refuse a model of classes where prompts are texts.

    Raises:
        PromptError: The model draws classes.
    """
    if profile.text.kind == "classes":
        raise PromptError(
            f"{suite} asks for texts, {profile.name} draws classes; compare it by fidelity, with a file of classes"
        )


def chosen_prompts(limit: int | None) -> list[ScenePrompt]:
    """SceneEval's prompts; with a limit the first so many of each task."""
    each = limit or PROMPTS_PER_TASK
    return [prompt for i, prompt in enumerate(scene_prompts()) if i % PROMPTS_PER_TASK < each]


def detector() -> Callable[[Pixels], Any]:
    """Reads the objects of a uint8 image with the scorer that ships."""
    import torch

    from ...models.checkpoint import load_into, open_checkpoint
    from ...models.tiny.scorer import Scorer, decode
    from ...profiles.model import FOLDER

    with torch.device("meta"):
        scorer = Scorer()
    load_into(scorer, open_checkpoint(FOLDER / "tiny" / "scorer.safetensors"), torch.float32)
    scorer.eval()

    def detect(pixels: Pixels) -> Any:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            return decode(scorer(image))[0]

    return detect


def judged(prompts: Sequence[ScenePrompt], detections: Sequence[Any], reference: Sequence[Any]) -> dict[str, Any]:
    """Shares of one engine and its difference to the reference.

    Args:
        prompts: One an image, in order.
        detections: Of the engine's images.
        reference: Of the reference's.
    """
    found = score(prompts, detections)
    marks = [[judge(p, d) for p, d in zip(prompts, side, strict=True)] for side in (detections, reference)]
    tasks = {name: share["accuracy"] for name, share in found["tasks"].items()}
    overall = {name: found["overall"][name] for name in ("accuracy", "low", "high")}
    return {**overall, "tasks": tasks, "images": len(prompts), "paired": asdict(paired(*marks))}
