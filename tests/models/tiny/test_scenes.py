"""Scenes keep their promises of layout, and captions say what the coordinates show."""

import dataclasses

import numpy as np
import pytest
from toprovar.models.tiny.scenes import PackedScenes, caption_tokens, captions, sample_scenes
from toprovar.models.tiny.text import WordTokenizer
from toprovar.models.tiny.vocabulary import (
    BACKGROUND_RGB,
    BACKGROUNDS,
    COLOUR_RGB,
    NUMBER_WORDS,
    PLURALS,
    SHAPES,
    TASKS,
    WORDS,
)
from toprovar.profiles.errors import ToprovarError

N = 3001


@pytest.fixture(scope="module")
def scenes() -> PackedScenes:
    return sample_scenes(N, np.random.default_rng(3))


def of_task(scenes: PackedScenes, name: str) -> np.ndarray:
    return np.flatnonzero(scenes.task == TASKS.index(name))


def test_words_are_distinct_and_colours_are_far_apart() -> None:
    assert len(set(WORDS)) == len(WORDS)
    colours = np.array(COLOUR_RGB)
    grounds = np.array(list(BACKGROUND_RGB.values())).reshape(-1, 3)
    between = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert between.min() > 90
    # also the dark parts of a texture stand out from any background
    for dimmed in (colours, 0.75 * colours):
        assert np.linalg.norm(dimmed[:, None] - grounds[None], axis=-1).min() > 65


def test_same_seed_same_scenes_and_captions() -> None:
    first, second, other = (sample_scenes(100, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for field in dataclasses.fields(PackedScenes):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert not np.array_equal(first.x, other.x)
    assert captions(first, np.random.default_rng(1)) == captions(second, np.random.default_rng(1))


def test_objects_lie_inside_and_apart(scenes: PackedScenes) -> None:
    used = np.arange(4) < scenes.count[:, None]
    for centre in (scenes.x, scenes.y):
        assert ((centre - scenes.radius)[used] >= 0).all()
        assert ((centre + scenes.radius)[used] <= 256).all()
        assert (centre[~used] == 0).all()
    for a in range(4):
        for b in range(a + 1, 4):
            both = scenes.count > b
            distance = np.hypot(scenes.x[:, a] - scenes.x[:, b], scenes.y[:, a] - scenes.y[:, b])
            assert (distance - scenes.radius[:, a] - scenes.radius[:, b])[both].min() > 3.99


def test_tasks_have_equal_shares_and_their_counts(scenes: PackedScenes) -> None:
    shares = np.bincount(scenes.task, minlength=len(TASKS))
    assert shares.max() - shares.min() <= 1
    for name, counts in {"single_object": {1}, "colors": {1}, "counting": {2, 3, 4}, "position": {2}}.items():
        assert set(scenes.count[of_task(scenes, name)].tolist()) == counts


def test_shapes_and_colours_follow_the_task(scenes: PackedScenes) -> None:
    for name in ("two_object", "position", "color_attr"):
        rows = of_task(scenes, name)
        assert (scenes.shape[rows, 0] != scenes.shape[rows, 1]).all()
    rows = of_task(scenes, "color_attr")
    assert (scenes.colour[rows, 0] != scenes.colour[rows, 1]).all()
    rows = of_task(scenes, "counting")
    assert (scenes.shape[rows, 0] == scenes.shape[rows, 1]).all()
    # half by choice and an eighth of the others by chance, among pairs
    same = (scenes.colour[rows, 0] == scenes.colour[rows, 1]).mean()
    assert 0.49 < same < 0.64


def test_position_scenes_have_a_dominant_axis(scenes: PackedScenes) -> None:
    rows = of_task(scenes, "position")
    across, down = (np.abs(centre[rows, 0] - centre[rows, 1]) for centre in (scenes.x, scenes.y))
    long_axis, short_axis = np.maximum(across, down), np.minimum(across, down)
    assert (long_axis >= 1.5 * short_axis).all()
    assert (long_axis >= scenes.radius[rows, :2].sum(1)).all()


def named(words: list[str]) -> tuple[str | None, str]:
    """Colour and shape of "a red star" or "a star", with the right article."""
    assert words[0] == ("an" if words[1][0] in "aeiou" else "a")
    return (words[1], words[2]) if len(words) == 3 else (None, words[1])


def check(scenes: PackedScenes, index: int, words: list[str]) -> bool:
    """Holds a caption to its scene; returns whether the background was named."""
    assert words[:3] == ["a", "photo", "of"]
    task, objects = TASKS[scenes.task[index]], scenes.objects(index)
    has_background = words[-1] == "background"
    if has_background:
        background = BACKGROUNDS[scenes.background[index]]
        assert words[-4:] == ["on", "a" if background[0] not in "aeiou" else "an", background, "background"]
    words = words[3:-4] if has_background else words[3:]
    if task == "counting":
        assert words == [NUMBER_WORDS[len(objects)], PLURALS[SHAPES.index(objects[0].shape)]]
    elif task in ("single_object", "colors"):
        colour, shape = named(words)
        assert (colour, shape) == (objects[0].colour if task == "colors" else None, objects[0].shape)
    else:
        split = next(i for i, word in enumerate(words) if word in ("and", "left", "right", "above", "below"))
        second = split + (2 if words[split] in ("left", "right") else 1)
        one, other = named(words[:split]), named(words[second:])
        by_shape = {item.shape: item for item in objects}
        for colour, shape in (one, other):
            assert colour == (by_shape[shape].colour if task == "color_attr" else None)
        across, down = (getattr(by_shape[one[1]], c) - getattr(by_shape[other[1]], c) for c in "xy")
        sideways = ("left", "right")[int(across > 0)] if abs(across) > abs(down) else ("above", "below")[int(down > 0)]
        assert words[split] == (sideways if task == "position" else "and")
    return has_background


def test_captions_say_what_the_scene_shows(scenes: PackedScenes) -> None:
    texts = captions(scenes, np.random.default_rng(7))
    mentions = sum(check(scenes, index, text.split()) for index, text in enumerate(texts))
    assert 0.12 < mentions / N < 0.18


def test_order_of_mention_is_random(scenes: PackedScenes) -> None:
    texts = captions(scenes, np.random.default_rng(7))
    for name in ("two_object", "position", "color_attr"):
        rows = of_task(scenes, name)
        first = sum(
            min(SHAPES, key=lambda shape: (texts[row] + " ").find(f" {shape} ") % 1000) == SHAPES[scenes.shape[row, 0]]
            for row in rows
        )
        assert 0.42 < first / len(rows) < 0.58


def test_tokens_are_what_the_tokenizer_makes_of_the_captions(scenes: PackedScenes) -> None:
    tokens = caption_tokens(scenes, np.random.default_rng(11))
    encoded = WordTokenizer().encode(captions(scenes, np.random.default_rng(11)), width=16)
    np.testing.assert_array_equal(tokens, encoded.ids)
    assert not encoded.cut.any()
    assert encoded.lengths.max() == 15
    np.testing.assert_array_equal(caption_tokens(scenes, np.random.default_rng(11), 15), tokens[:, :15])


def test_short_captions_are_refused(scenes: PackedScenes) -> None:
    with pytest.raises(ToprovarError, match="max_length 14: captions have up to 15"):
        caption_tokens(scenes, np.random.default_rng(0), max_length=14)
