"""What the tiny model's world is made of: shapes, colours, textures, backgrounds, and every word of a caption.

The eight colours are bright and the sixteen backgrounds dark or muted, so that any object stands out from any
background and a reader of the image never has to guess. Ids of everything are positions in these tuples; they are part
of trained weights, so entries are appended and never reordered. This module imports nothing.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
PLURALS = ("circles", "squares", "triangles", "stars", "hearts", "crosses", "rings", "moons")

# RGB, 0 to 255; the nearest two are 99 apart, and a texture dims a colour to no less than three quarters of it
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
COLOUR_RGB = (
    (230, 25, 40),
    (255, 135, 0),
    (255, 230, 30),
    (40, 190, 60),
    (40, 90, 245),
    (165, 45, 215),
    (255, 140, 200),
    (250, 250, 250),
)

TEXTURES = ("plain", "striped", "dotted")

# RGB at the top and at the bottom edge; the gradient between them is linear
BACKGROUND_RGB = {
    "black": ((12, 12, 14), (34, 34, 38)),
    "charcoal": ((44, 46, 50), (66, 68, 74)),
    "gray": ((92, 94, 98), (122, 124, 128)),
    "slate": ((58, 72, 92), (84, 98, 118)),
    "navy": ((14, 22, 58), (28, 42, 86)),
    "indigo": ((38, 30, 80), (58, 48, 108)),
    "teal": ((10, 66, 72), (24, 94, 98)),
    "pine": ((12, 48, 42), (26, 70, 60)),
    "forest": ((20, 52, 24), (38, 78, 40)),
    "olive": ((66, 66, 26), (94, 92, 44)),
    "moss": ((70, 84, 58), (98, 112, 80)),
    "brown": ((64, 42, 26), (92, 64, 42)),
    "sand": ((120, 106, 84), (146, 130, 106)),
    "maroon": ((66, 18, 24), (92, 30, 36)),
    "plum": ((66, 34, 62), (92, 52, 86)),
    "mauve": ((104, 84, 100), (130, 108, 124)),
}
BACKGROUNDS = tuple(BACKGROUND_RGB)

# GenEval's six kinds, by GenEval's names
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}

PAD, UNKNOWN, END = 0, 1, 2
_GRAMMAR = ("a", "an", "photo", "of", "and", "left", "right", "above", "below", "on", "background")
WORDS = ("<pad>", "<unk>", "</s>", *_GRAMMAR, *NUMBER_WORDS.values(), *COLOURS, *SHAPES, *PLURALS, *BACKGROUNDS)
WORD_ID = {word: index for index, word in enumerate(WORDS)}


def article(word: str) -> str:
    """The indefinite article that goes before `word`: "an orange star", "a star"."""
    return "an" if word[0] in "aeiou" else "a"
