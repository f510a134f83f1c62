"""Drawings show the colours, the shapes and the background that the scene names, in their places."""

import numpy as np
import pytest
import torch
from toprovar.models.tiny.render import render, take, to_tensors
from toprovar.models.tiny.scenes import PackedScenes, sample_scenes
from toprovar.models.tiny.vocabulary import BACKGROUND_RGB, BACKGROUNDS, COLOUR_RGB, COLOURS, SHAPES, TEXTURES

HOLLOW = {"ring", "moon"}  # their centre is not painted


def scene(
    shape: str,
    colour: str = "red",
    texture: str = "plain",
    background: str = "black",
    **at: float,
) -> PackedScenes:
    """One object, by default in the middle with a radius of 60 px."""

    def slots(value: float, dtype: type) -> np.ndarray:
        return np.array([[value, 0, 0, 0]], dtype)

    return PackedScenes(
        count=np.array([1]),
        shape=slots(SHAPES.index(shape), np.int64),
        colour=slots(COLOURS.index(colour), np.int64),
        texture=slots(TEXTURES.index(texture), np.int64),
        x=slots(at.get("x", 128.0), np.float32),
        y=slots(at.get("y", 128.0), np.float32),
        radius=slots(at.get("radius", 60.0), np.float32),
        background=np.array([BACKGROUNDS.index(background)]),
        task=np.array([0]),
    )


def draw(one: PackedScenes, size: int = 256) -> np.ndarray:
    """RGB 0 to 255, `[size, size, 3]`."""
    return ((render(to_tensors(one), size)[0] + 1) * 127.5).permute(1, 2, 0).numpy()


def mask(shape: str, radius: float = 60.0) -> np.ndarray:
    """Where the object is, `[256, 256]` bool."""
    return draw(scene(shape, "white", background="black", radius=radius))[..., 0] > 128


@pytest.mark.parametrize("shape", SHAPES)
def test_object_has_its_colour_and_the_rest_is_background(shape: str) -> None:
    image = draw(scene(shape, "orange", background="teal", x=90.0, y=150.0))
    # the left limb of ring and moon lies at three quarters of the radius
    at = (150, 90 - 45) if shape in HOLLOW else (150, 90)
    np.testing.assert_allclose(image[at], COLOUR_RGB[COLOURS.index("orange")], atol=0.1)
    top, bottom = (np.array(edge, np.float64) for edge in BACKGROUND_RGB["teal"])
    rows, columns = np.mgrid[:256, :256] + 0.5
    outside = np.hypot(columns - 90, rows - 150) > 62
    gradient = top + (bottom - top) * (rows / 256)[..., None]
    np.testing.assert_allclose(image[outside], gradient[outside], atol=0.1)


def test_known_areas() -> None:
    """Areas of radius 60, by hand: they hold shape, size and antialiasing at once."""
    areas = {
        "circle": np.pi * 57**2,
        "square": 84**2,
        "triangle": 3 * np.sqrt(3) / 4 * 60**2,
        "cross": (2 * 114 * 36) - 36**2,
        "ring": np.pi * ((0.96 * 60) ** 2 - (0.52 * 60) ** 2),
        "star": 10 * 0.5 * 60 * 27 * np.sin(np.pi / 5),
        "heart": (0.74 * 60) ** 2 * (2 + np.pi / 2),
    }
    for shape, area in areas.items():
        plain = draw(scene(shape, colour="white", background="black"))[..., 0]
        ground = draw(scene(shape, background="black", x=-900.0))[..., 0]
        covered = ((plain - ground) / (250 - ground)).sum()
        assert covered == pytest.approx(area, rel=0.01), shape


def test_shapes_differ_pairwise_even_when_small() -> None:
    masks = [mask(shape, radius=40.0) for shape in SHAPES]
    for a in range(len(SHAPES)):
        for b in range(a):
            overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert overlap < 0.83, (SHAPES[a], SHAPES[b])


def test_orientation() -> None:
    """y points down: triangle and star end in a tip above, the heart in one below, the moon opens to the right."""
    for shape, tip, blunt in (("triangle", 0, -1), ("star", 0, None), ("heart", -1, 0)):
        rows = mask(shape).sum(1)
        widths = rows[rows > 0]
        assert widths[tip] <= 4, shape
        assert blunt is None or widths[blunt] > 8, shape
    moon = mask("moon")
    assert moon[:, :128].sum() > 4 * moon[:, 128:].sum()


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_texture_dims_a_part_and_keeps_the_hue(texture: str) -> None:
    plain, marked = draw(scene("square", "red", "plain")), draw(scene("square", "red", texture))
    inside = np.s_[90:166, 90:166]
    ratio = marked[inside][..., 0] / plain[inside][..., 0]
    assert ratio.min() == pytest.approx(0.75, abs=0.01)
    assert ratio.max() == pytest.approx(1.0, abs=0.01)
    assert 0.15 < (ratio < 0.875).mean() < 0.6
    np.testing.assert_allclose(marked[inside][..., 1] / plain[inside][..., 1], ratio, atol=0.02)


def test_a_batch_equals_its_images_one_by_one() -> None:
    tensors = to_tensors(sample_scenes(13, np.random.default_rng(2)))
    order = torch.tensor([11, 0, 5])
    batch = render(take(tensors, order))
    assert batch.shape == (3, 3, 256, 256)
    for place, index in enumerate(order):
        torch.testing.assert_close(batch[place], render(take(tensors, index[None]))[0], rtol=0, atol=1e-6)
    assert batch.min() >= -1
    assert batch.max() <= 1


def test_size_scales_the_scene() -> None:
    """A drawing at half the size is the full drawing's 2x2 mean, but for antialiasing."""
    tensors = to_tensors(sample_scenes(5, np.random.default_rng(4)))
    halved = torch.nn.functional.avg_pool2d(render(tensors), 2)
    assert (render(tensors, 128) - halved).abs().mean() < 0.01
