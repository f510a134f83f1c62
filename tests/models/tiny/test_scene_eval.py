"""The prompt file is what its function makes, and the judge follows GenEval's rules, in the negative too."""

from importlib.resources import files

import numpy as np
import pytest
from toprovar.models.tiny.scene_eval import (
    PROMPTS_PER_TASK,
    Requirement,
    ScenePrompt,
    judge,
    make_scene_prompts,
    scene_prompts,
    score,
    wilson_interval,
)
from toprovar.models.tiny.scenes import Detection, captions, sample_scenes
from toprovar.models.tiny.text import WordTokenizer
from toprovar.models.tiny.vocabulary import TASKS, UNKNOWN
from toprovar.profiles.errors import PromptError


def one(shape: str, colour: str = "red", x: float = 60.0, y: float = 60.0, confidence: float = 0.9) -> Detection:
    return Detection(shape, colour, x, y, confidence)


def prompt(text: str) -> ScenePrompt:
    """The handwritten prompt of this text."""
    return {item.prompt: item for item in EVERY}[f"a photo of {text}"]


def need(shape: str, count: int = 1, colour: str | None = None, position: tuple[str, int] | None = None) -> Requirement:
    return Requirement(shape=shape, count=count, colour=colour, position=position)


EVERY = [
    ScenePrompt(tag="single_object", prompt="a photo of a star", include=(need("star"),)),
    ScenePrompt(tag="two_object", prompt="a photo of a star and a ring", include=(need("star"), need("ring"))),
    ScenePrompt(tag="counting", prompt="a photo of two stars", include=(need("star", 2),), exclude=(need("star", 3),)),
    ScenePrompt(tag="colors", prompt="a photo of a red star", include=(need("star", 1, "red"),)),
    ScenePrompt(
        tag="position",
        prompt="a photo of a star left of a ring",
        include=(need("ring"), need("star", 1, None, ("left of", 0))),
    ),
    ScenePrompt(
        tag="position",
        prompt="a photo of a star below a ring",
        include=(need("ring"), need("star", 1, None, ("below", 0))),
    ),
    ScenePrompt(
        tag="color_attr",
        prompt="a photo of a red star and a blue ring",
        include=(need("star", 1, "red"), need("ring", 1, "blue")),
    ),
]

FAR = {"x": 190.0}
CASES = [
    ("a star", [one("star")], True),
    ("a star", [one("ring"), one("star", **FAR)], True),
    ("a star", [one("ring")], False),
    ("a star", [], False),
    ("a star and a ring", [one("star"), one("ring", **FAR)], True),
    ("a star and a ring", [one("star"), one("star", **FAR)], False),
    ("two stars", [one("star"), one("star", **FAR)], True),
    ("two stars", [one("star"), one("star", **FAR), one("ring", y=200)], True),
    ("two stars", [one("star")], False),
    ("two stars", [one("star"), one("star", **FAR), one("star", y=200)], False),
    ("a red star", [one("star", "red")], True),
    ("a red star", [one("star", "pink")], False),
    ("a red star", [one("star", "pink"), one("ring", "red", **FAR)], False),
    # of two stars the surer counts
    ("a red star", [one("star", "pink", confidence=0.5), one("star", "red", **FAR)], True),
    ("a red star", [one("star", "red", confidence=0.5), one("star", "pink", **FAR)], False),
    ("a star left of a ring", [one("star"), one("ring", **FAR)], True),
    ("a star left of a ring", [one("ring"), one("star", **FAR)], False),
    ("a star left of a ring", [one("star"), one("ring", y=190)], False),
    ("a star left of a ring", [one("star")], False),
    # within 16 px on both axes there is no relation
    ("a star left of a ring", [one("star"), one("ring", x=75)], False),
    # on a diagonal both words hold
    ("a star left of a ring", [one("star", y=190), one("ring", x=190)], True),
    ("a star below a ring", [one("star", y=190), one("ring", x=190)], True),
    ("a star below a ring", [one("star", y=190), one("ring")], True),
    ("a star below a ring", [one("star"), one("ring", y=190)], False),
    ("a red star and a blue ring", [one("star", "red"), one("ring", "blue", **FAR)], True),
    ("a red star and a blue ring", [one("star", "blue"), one("ring", "red", **FAR)], False),
    ("a red star and a blue ring", [one("star", "red"), one("ring", "red", **FAR)], False),
]


@pytest.mark.parametrize(("text", "detections", "expected"), CASES)
def test_judge(text: str, detections: list[Detection], expected: bool) -> None:
    assert judge(prompt(text), detections) is expected
    assert judge(prompt(text), detections[::-1]) is expected


def test_file_is_what_the_function_makes() -> None:
    made = make_scene_prompts()
    text = files("toprovar.profiles").joinpath("tiny", "scene_eval.jsonl").read_text(encoding="utf-8")
    assert text == "".join(item.to_json() + "\n" for item in made)
    assert scene_prompts() == made


def test_fifty_prompts_a_task_in_known_words() -> None:
    prompts = scene_prompts()
    assert [item.tag for item in prompts] == [tag for tag in TASKS for _ in range(PROMPTS_PER_TASK)]
    encoded = WordTokenizer().encode([item.prompt for item in prompts])
    assert not (encoded.ids == UNKNOWN).any()
    assert not any("background" in item.prompt for item in prompts)
    for tag, distinct in zip(TASKS, (8, 50, 24, 50, 50, 50), strict=True):
        assert len({item.prompt for item in prompts if item.tag == tag}) == distinct


def test_metadata_means_what_the_prompt_says() -> None:
    """A training scene whose caption is a prompt satisfies that prompt: grammar and judge agree."""
    scenes = sample_scenes(30_000, np.random.default_rng(12))
    by_text = {item.prompt: item for item in scene_prompts()}
    seen, wrong = dict.fromkeys(TASKS, 0), []
    for index, text in enumerate(captions(scenes, np.random.default_rng(13))):
        if text in by_text:
            seen[by_text[text].tag] += 1
            if not judge(by_text[text], scenes.objects(index)):
                wrong.append((text, scenes.objects(index)))
    assert not wrong
    assert min(seen.values()) > 30


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(PromptError, match="the keys are class and count"):
        Requirement.from_dict({"class": "star", "count": 1, "colour": "red"})


def test_score_is_the_mean_of_the_tasks() -> None:
    prompts = [prompt("a star")] * 4 + [prompt("two stars")] * 2
    right, wrong = [one("star")], [one("ring")]
    result = score(prompts, [right, right, right, wrong, [one("star"), one("star", **FAR)], wrong])
    assert list(result["tasks"]) == ["single_object", "counting"]
    assert (result["tasks"]["single_object"]["correct"], result["tasks"]["single_object"]["total"]) == (3, 4)
    assert result["tasks"]["counting"]["accuracy"] == 0.5
    assert result["overall"]["accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert result["overall"]["low"] < 0.625 < result["overall"]["high"]


def test_wilson_interval_of_the_textbook() -> None:
    """Known values: 8 of 10, and the ends, where a normal interval would have no width."""
    assert wilson_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(1.0, 50) == pytest.approx((0.9287, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 50) == pytest.approx((0.0, 0.0713), abs=1e-4)


def test_score_needs_one_image_a_prompt() -> None:
    with pytest.raises(PromptError, match="1 prompts, 0 images"):
        score([prompt("a star")], [])
