"""Random scenes as packed arrays, and their captions in GenEval's manner.

A scene is one to four objects on a background, drawn for one of GenEval's six kinds of prompt. Everything is sampled
for all scenes at once: the training loop draws hundreds of thousands, and a list of Python objects would cost more
time than rendering them. Captions are written as word ids; their text is those ids read back, so the two cannot differ.

All lengths are in pixels of a 256x256 image, y pointing down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...profiles.errors import ToprovarError
from .vocabulary import (
    BACKGROUNDS,
    COLOURS,
    END,
    NUMBER_WORDS,
    PLURALS,
    SHAPES,
    TASKS,
    TEXTURES,
    WORD_ID,
    WORDS,
    article,
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

IMAGE_SIZE = 256
MAX_OBJECTS = 4
LONGEST_CAPTION = 15  # tokens of "a photo of a red star and a blue circle on a plum background </s>"
BACKGROUND_MENTION = 0.15  # probability that a caption names the background

_GAP = 4.0  # least space between two objects' circles
_MARGIN = 2.0  # least space between a circle and the edge
_DOMINANCE = 1.5  # how much longer the named axis is in a position scene
_RADII = np.array([[44, 72], [34, 50], [28, 38], [28, 38]], dtype=np.float32)  # [count - 1, (low, high)]


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: read from an image, or known from a scene.

    Attributes:
        shape: A word of `SHAPES`.
        colour: A word of `COLOURS`.
        x: Centre, in pixels of a 256x256 image.
        y: Centre, in pixels of a 256x256 image, downwards.
        confidence: Between 0 and 1.
    """

    shape: str
    colour: str
    x: float
    y: float
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class PackedScenes:
    """n scenes of up to four objects; slots from `count` on are zero.

    Attributes:
        count: `[n]` int64, 1 to 4.
        shape: `[n, 4]` int64, index into `SHAPES`.
        colour: `[n, 4]` int64, index into `COLOURS`.
        texture: `[n, 4]` int64, index into `TEXTURES`.
        x: `[n, 4]` float32, centre of the circle around the object.
        y: `[n, 4]` float32, downwards.
        radius: `[n, 4]` float32, of the circle around the object.
        background: `[n]` int64, index into `BACKGROUNDS`.
        task: `[n]` int64, index into `TASKS`.
    """

    count: IntArray
    shape: IntArray
    colour: IntArray
    texture: IntArray
    x: FloatArray
    y: FloatArray
    radius: FloatArray
    background: IntArray
    task: IntArray

    def __len__(self) -> int:
        return len(self.count)

    def objects(self, index: int) -> list[Detection]:
        """The objects of one scene, as a perfect reader of the image would report them."""
        return [
            Detection(
                SHAPES[self.shape[index, slot]],
                COLOURS[self.colour[index, slot]],
                float(self.x[index, slot]),
                float(self.y[index, slot]),
            )
            for slot in range(self.count[index])
        ]


def sample_scenes(n: int, rng: np.random.Generator) -> PackedScenes:
    """Draws `n` scenes, the six tasks in equal share and random order.

    Objects lie fully inside the image and at least 4 px apart. Two-object tasks have two shapes, `color_attr` also two
    colours; counting scenes repeat one shape, in half of them in one colour.
    """
    task = rng.permutation(np.arange(n, dtype=np.int64) % len(TASKS))
    counting = task == TASKS.index("counting")
    single = (task == TASKS.index("single_object")) | (task == TASKS.index("colors"))
    count = np.where(counting, rng.integers(2, MAX_OBJECTS + 1, n), np.where(single, 1, 2))
    used = np.arange(MAX_OBJECTS) < count[:, None]

    shape = _distinct(n, len(SHAPES), rng)
    shape = np.where(counting[:, None], shape[:, :1], shape)
    colour = rng.integers(len(COLOURS), size=(n, MAX_OBJECTS))
    two_colours = task == TASKS.index("color_attr")
    colour[two_colours] = _distinct(int(two_colours.sum()), len(COLOURS), rng)
    one_colour = counting & (rng.random(n) < 0.5)
    colour = np.where(one_colour[:, None], colour[:, :1], colour)

    x, y, radius = _place(count, task == TASKS.index("position"), rng)
    return PackedScenes(
        count=count,
        shape=shape * used,
        colour=colour * used,
        texture=rng.integers(len(TEXTURES), size=(n, MAX_OBJECTS)) * used,
        x=x * used,
        y=y * used,
        radius=radius * used,
        background=rng.integers(len(BACKGROUNDS), size=n),
        task=task,
    )


def _distinct(n: int, choices: int, rng: np.random.Generator) -> IntArray:
    """`[n, 4]` ids below `choices`, all different within a row."""
    return np.argsort(rng.random((n, choices)), axis=1)[:, :MAX_OBJECTS]


def _place(count: IntArray, needs_axis: BoolArray, rng: np.random.Generator) -> tuple[FloatArray, ...]:
    """Centres and radii `[n, 4]` by rejection: all scenes not yet valid are drawn again together."""
    x, y, radius = (np.zeros((len(count), MAX_OBJECTS), np.float32) for _ in range(3))
    pending = np.arange(len(count))
    while pending.size:
        low, high = _RADII[count[pending] - 1, :, None].transpose(1, 0, 2)
        draws = rng.random((3, pending.size, MAX_OBJECTS), dtype=np.float32)
        radii = low + draws[0] * (high - low)
        reach = IMAGE_SIZE - 2 * (radii + _MARGIN)
        xs, ys = radii + _MARGIN + draws[1] * reach, radii + _MARGIN + draws[2] * reach
        good = _valid(xs, ys, radii, count[pending], needs_axis[pending])
        done = pending[good]
        x[done], y[done], radius[done] = xs[good], ys[good], radii[good]
        pending = pending[~good]
    return x, y, radius


def _valid(x: FloatArray, y: FloatArray, radius: FloatArray, count: IntArray, needs_axis: BoolArray) -> BoolArray:
    """`[n]`: objects apart and, where `needs_axis`, the first two clearly side by side or one above the other."""
    valid: BoolArray = np.ones(len(count), np.bool_)
    for first in range(MAX_OBJECTS):
        for second in range(first + 1, MAX_OBJECTS):
            distance = np.hypot(x[:, first] - x[:, second], y[:, first] - y[:, second])
            valid &= (distance >= radius[:, first] + radius[:, second] + _GAP) | (count <= second)
    across, down = np.abs(x[:, 0] - x[:, 1]), np.abs(y[:, 0] - y[:, 1])
    long_axis, short_axis = np.maximum(across, down), np.minimum(across, down)
    clear = (long_axis >= _DOMINANCE * short_axis) & (long_axis >= radius[:, 0] + radius[:, 1])
    valid &= clear | ~needs_axis
    return valid


class _Writer:
    """Appends words to the captions of chosen scenes, all scenes at once."""

    def __init__(self, n: int, max_length: int) -> None:
        self.ids = np.zeros((n, max_length), np.int64)
        self.lengths = np.zeros(n, np.int64)

    def append(self, rows: IntArray, *columns: str | IntArray) -> None:
        """Writes one word a column: the same word for all `rows`, or an id for each of them."""
        for column in columns:
            self.ids[rows, self.lengths[rows]] = WORD_ID[column] if isinstance(column, str) else column
            self.lengths[rows] += 1


def _ids(words: Sequence[str]) -> IntArray:
    return np.array([WORD_ID[word] for word in words], np.int64)


_SHAPE_ID, _PLURAL_ID, _COLOUR_ID, _BACKGROUND_ID = _ids(SHAPES), _ids(PLURALS), _ids(COLOURS), _ids(BACKGROUNDS)
_NUMBER_ID = np.array([WORD_ID[NUMBER_WORDS[count]] if count in NUMBER_WORDS else 0 for count in range(5)], np.int64)
_ARTICLE_ID = _ids([article(word) for word in WORDS])  # by word id


def caption_tokens(scenes: PackedScenes, rng: np.random.Generator, max_length: int = 16) -> IntArray:
    """One random caption a scene, as word ids that end in `</s>` and are padded with 0.

    Args:
        scenes: n scenes.
        rng: Chooses the order of mention and whether the background is named.
        max_length: Columns of the result, at least 15.

    Returns:
        `[n, max_length]` int64.

    Raises:
        ToprovarError: `max_length` is too small for the longest caption.
    """
    if max_length < LONGEST_CAPTION:
        raise ToprovarError(f"max_length {max_length}: captions have up to {LONGEST_CAPTION} tokens; pass that or more")
    n = len(scenes)
    writer = _Writer(n, max_length)
    everything = np.arange(n)
    first = rng.integers(2, size=n) * (scenes.count == 2) * (scenes.task != TASKS.index("counting"))
    suffix = np.flatnonzero(rng.random(n) < BACKGROUND_MENTION)

    writer.append(everything, "a", "photo", "of")
    for task, name in enumerate(TASKS):
        rows = np.flatnonzero(scenes.task == task)
        if name == "counting":
            writer.append(rows, _NUMBER_ID[scenes.count[rows]], _PLURAL_ID[scenes.shape[rows, 0]])
            continue
        coloured = name in ("colors", "color_attr")
        _append_object(writer, scenes, rows, first[rows], coloured)
        if name == "position":
            _append_relation(writer, scenes, rows, first[rows])
        elif name in ("two_object", "color_attr"):
            writer.append(rows, "and")
        if name in ("two_object", "position", "color_attr"):
            _append_object(writer, scenes, rows, 1 - first[rows], coloured)
    background = _BACKGROUND_ID[scenes.background[suffix]]
    writer.append(suffix, "on", _ARTICLE_ID[background], background, "background")
    writer.append(everything, "</s>")
    return writer.ids


def _append_object(writer: _Writer, scenes: PackedScenes, rows: IntArray, slot: IntArray, coloured: bool) -> None:
    """ "a star" or "a red star", of the object in each row's `slot`."""
    shape = _SHAPE_ID[scenes.shape[rows, slot]]
    colour = _COLOUR_ID[scenes.colour[rows, slot]]
    writer.append(rows, _ARTICLE_ID[colour if coloured else shape])
    if coloured:
        writer.append(rows, colour)
    writer.append(rows, shape)


def _append_relation(writer: _Writer, scenes: PackedScenes, rows: IntArray, first: IntArray) -> None:
    """How the object named first lies to the other, along the longer axis."""
    across = scenes.x[rows, first] - scenes.x[rows, 1 - first]
    down = scenes.y[rows, first] - scenes.y[rows, 1 - first]
    sideways = np.abs(across) >= np.abs(down)
    writer.append(rows[sideways & (across < 0)], "left", "of")
    writer.append(rows[sideways & (across >= 0)], "right", "of")
    writer.append(rows[~sideways & (down < 0)], "above")
    writer.append(rows[~sideways & (down >= 0)], "below")


def captions(scenes: PackedScenes, rng: np.random.Generator) -> list[str]:
    """The text of `caption_tokens` for the same `scenes` and state of `rng`: "a photo of a star left of a ring"."""
    ids = caption_tokens(scenes, rng)
    return [" ".join(WORDS[token] for token in row if token > END) for row in ids.tolist()]
