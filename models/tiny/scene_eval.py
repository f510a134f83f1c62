"""SceneEval: GenEval's six kinds of prompt over the tiny model's world, 50 of each, and GenEval's rules for judging.

The prompts are a file, in GenEval's metadata style, so that any generator can be asked and any reader of images can
judge; `make_scene_prompts` regenerates it. Training and evaluation share the grammar. Kinds with few distinct prompts
(eight shapes make eight single-object prompts) repeat them: give every prompt its own seed.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import permutations, product
from typing import Any, TypedDict

from ...profiles.errors import PromptError
from .scenes import Detection
from .vocabulary import COLOURS, NUMBER_WORDS, PLURALS, RELATIONS, SHAPES, TASKS, article

PROMPTS_PER_TASK = 50
_SEED = 20250
_SLACK_PX = 16.0  # an offset this small is no relation; GenEval's tenth of the sizes, for objects of 80 px
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What must be in the image, or in `exclude` must not be.

    Attributes:
        shape: A word of `SHAPES`; "class" in the file.
        count: How many at least.
        colour: Of all of them; "color" in the file. None for any.
        position: A word of `RELATIONS` and the index in `include` of the object it refers to, or None.
    """

    shape: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """GenEval's form, absent fields left out."""
        entry: dict[str, Any] = {"class": self.shape, "count": self.count}
        if self.colour is not None:
            entry["color"] = self.colour
        if self.position is not None:
            entry["position"] = list(self.position)
        return entry

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Requirement:
        """Reads GenEval's form.

        Raises:
            PromptError: A key is missing or unknown.
        """
        unknown = sorted(set(entry) - {"class", "count", "color", "position"})
        if unknown or not {"class", "count"} <= set(entry):
            raise PromptError(f"requirement {entry}: the keys are class and count, and perhaps color and position")
        position = entry.get("position")
        return cls(
            shape=entry["class"],
            count=entry["count"],
            colour=entry.get("color"),
            position=None if position is None else (position[0], position[1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenePrompt:
    """One prompt and how its image is judged.

    Attributes:
        tag: A word of `TASKS`.
        prompt: The text.
        include: What must be there.
        exclude: What must not be there as often as it says.
    """

    tag: str
    prompt: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    def to_json(self) -> str:
        """One line of the file."""
        entry = {"tag": self.tag, "prompt": self.prompt, "include": [one.to_dict() for one in self.include]}
        return json.dumps(entry | {"exclude": [one.to_dict() for one in self.exclude]})

    @classmethod
    def from_json(cls, line: str) -> ScenePrompt:
        """Reads one line of the file."""
        entry = json.loads(line)
        include, exclude = (tuple(map(Requirement.from_dict, entry.get(key, []))) for key in ("include", "exclude"))
        return cls(tag=entry["tag"], prompt=entry["prompt"], include=include, exclude=exclude)


def _named(word: str) -> str:
    return f"{article(word)} {word}"


def _every_prompt(tag: str) -> list[ScenePrompt]:
    """All prompts of one task, in a fixed order."""

    def prompt(text: str, *include: Requirement, exclude: tuple[Requirement, ...] = ()) -> ScenePrompt:
        return ScenePrompt(tag=tag, prompt=f"a photo of {text}", include=include, exclude=exclude)

    def one(shape: str, colour: str | None = None, position: tuple[str, int] | None = None) -> Requirement:
        return Requirement(shape=shape, count=1, colour=colour, position=position)

    pairs = list(permutations(SHAPES, 2))
    if tag == "single_object":
        return [prompt(_named(shape), one(shape)) for shape in SHAPES]
    if tag == "two_object":
        return [prompt(f"{_named(a)} and {_named(b)}", one(a), one(b)) for a, b in pairs]
    if tag == "counting":
        return [
            prompt(
                f"{word} {plural}",
                Requirement(shape=shape, count=count),
                exclude=(Requirement(shape=shape, count=count + 1),),
            )
            for (count, word), (shape, plural) in product(NUMBER_WORDS.items(), zip(SHAPES, PLURALS, strict=True))
        ]
    if tag == "colors":
        return [prompt(_named(f"{c} {shape}"), one(shape, c)) for c, shape in product(COLOURS, SHAPES)]
    if tag == "position":
        # GenEval lists the object referred to first
        return [
            prompt(f"{_named(a)} {relation} {_named(b)}", one(b), one(a, position=(relation, 0)))
            for (a, b), relation in product(pairs, RELATIONS)
        ]
    return [
        prompt(f"{_named(f'{c} {a}')} and {_named(f'{d} {b}')}", one(a, c), one(b, d))
        for (a, b), (c, d) in product(pairs, permutations(COLOURS, 2))
    ]


def make_scene_prompts() -> list[ScenePrompt]:
    """The 300 prompts, task by task: a fixed shuffle of each task's prompts, begun again when it runs out."""
    # of the standard library's generator, only random() keeps its values across Python versions
    rng = random.Random(_SEED)
    chosen = []
    for tag in TASKS:
        shuffled = sorted(_every_prompt(tag), key=lambda _: rng.random())
        chosen += [shuffled[index % len(shuffled)] for index in range(PROMPTS_PER_TASK)]
    return chosen


def scene_prompts() -> list[ScenePrompt]:
    """The 300 prompts of the file that ships, `profiles/tiny/scene_eval.jsonl`."""
    text = files("toprovar.profiles").joinpath("tiny", "scene_eval.jsonl").read_text(encoding="utf-8")
    return [ScenePrompt.from_json(line) for line in text.splitlines()]


def _relations(one: Detection, other: Detection) -> set[str]:
    """How `one` lies to `other`; two words on a diagonal, none when they coincide."""
    across, down = one.x - other.x, one.y - other.y
    across, down = (math.copysign(max(abs(offset) - _SLACK_PX, 0.0), offset) for offset in (across, down))
    length = math.hypot(across, down)
    if length == 0:
        return set()
    signs = {"left of": -across, "right of": across, "above": -down, "below": down}
    return {relation for relation, along in signs.items() if along / length > 0.5}


def judge(prompt: ScenePrompt, detections: Sequence[Detection]) -> bool:
    """Whether an image shows what was asked, by GenEval's rules.

    Each requirement looks at the surest `count` objects of its shape: they must be there, have the colour, and lie in
    the named relation to those of the requirement referred to. Other shapes in the image do no harm; `exclude` caps
    the count.
    """
    by_confidence = sorted(detections, key=lambda one: -one.confidence)
    found: list[list[Detection]] = []
    for need in prompt.include:
        matches = [one for one in by_confidence if one.shape == need.shape][: need.count]
        if len(matches) < need.count or any(need.colour not in (None, one.colour) for one in matches):
            return False
        if need.position is not None:
            relation, target = need.position
            if not all(relation in _relations(one, other) for one in matches for other in found[target]):
                return False
        found.append(matches)
    return all(sum(one.shape == bar.shape for one in by_confidence) < bar.count for bar in prompt.exclude)


class Share(TypedDict):
    """A share of right images: `accuracy` and its Wilson 95 % interval are between 0 and 1."""

    correct: int
    total: int
    accuracy: float
    low: float
    high: float


class SceneScore(TypedDict):
    """The shares by task and overall."""

    tasks: dict[str, Share]
    overall: Share


def wilson_interval(accuracy: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share seen in `total` trials, at least 1."""
    spread = _Z * _Z / total
    middle = (accuracy + spread / 2) / (1 + spread)
    half = _Z * math.sqrt((accuracy * (1 - accuracy) + spread / 4) / total) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(correct: int, total: int, accuracy: float) -> Share:
    low, high = wilson_interval(accuracy, total)
    return {"correct": correct, "total": total, "accuracy": accuracy, "low": low, "high": high}


def score(prompts: Sequence[ScenePrompt], detections: Sequence[Sequence[Detection]]) -> SceneScore:
    """Judges one image a prompt.

    Args:
        prompts: At least one; tasks that do not occur are left out.
        detections: The objects read from each prompt's image, in the same order.

    Returns:
        Shares by task; `overall["accuracy"]` is the mean of the tasks', as in GenEval. Its interval takes all images
        as one sample, which is a little too wide when tasks differ in difficulty.

    Raises:
        PromptError: No prompts, or another number of images.
    """
    if not prompts or len(prompts) != len(detections):
        raise PromptError(f"{len(prompts)} prompts, {len(detections)} images; give one image a prompt, at least one")
    right: dict[str, list[bool]] = {}
    for prompt, found in zip(prompts, detections, strict=True):
        right.setdefault(prompt.tag, []).append(judge(prompt, found))
    tasks = {tag: _share(sum(marks), len(marks), sum(marks) / len(marks)) for tag, marks in right.items()}
    mean = sum(share["accuracy"] for share in tasks.values()) / len(tasks)
    return {"tasks": tasks, "overall": _share(sum(share["correct"] for share in tasks.values()), len(prompts), mean)}
