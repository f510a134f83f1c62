"""The report's pictures over example images: where attention is sharp, and which tokens a schedule would keep there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..profiles.measurements import Measurements
from ..profiles.plan import ScalePlan, plan_scales
from ..profiles.schedule import Schedule
from .figures import INK, charted, new_figure

Image = NDArray[np.float64]

MAPS_MAX = 4
"""Maps beside each image: more would be too small to see."""
SIDE_MIN = 4
IMAGE_SIDE_MAX = 256
"""Pixels; larger examples are thinned out, the panels are no larger."""
SHINES_THROUGH = 0.12
"""How much of the image shows where no layer keeps a token; the rest is `DROPPED_GREY`."""
DROPPED_GREY = 0.8
DOTS_PER_INCH = 110
PANEL, GAP, LEFT, TOP, BAR_HEIGHT, BAR_ROOM = 1.78, 0.07, 0.26, 0.42, 0.09, 0.5
"""Inches: the longer side of a panel, between panels, the margins, and the colour bar with its labels."""


def examples_shown(measurements: Measurements) -> list[int]:
    """Examples that have an image."""
    return [i for i in range(len(measurements.header["examples"])) if f"image.{i}" in measurements.examples]


def scales_shown(measurements: Measurements) -> list[int]:
    """The last scales whose maps are large enough to look at."""
    return [scale for scale, size in enumerate(measurements.sizes) if min(size) >= SIDE_MIN][-MAPS_MAX:]


def pruned_plans(schedule: Schedule) -> list[ScalePlan]:
    """Scales whose tokens are chosen by entropy, coarse to fine."""
    return [plan for plan in plan_scales(schedule) if plan.tokens is not None and plan.tokens.score == "entropy"]


def kept_mask(entropy: NDArray[np.float32], count: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which tokens of a scale run: the `count` of lowest entropy in an earlier scale's map, enlarged.

    Args:
        entropy: `[h', w']` map of the earlier scale, nats.
        count: Tokens to keep.
        size: (h, w) of the scale.

    Returns:
        `[h, w]`, True at exactly `count` places: the tokens that the model itself would take.
    """
    import torch

    from ..models.select import select_tokens

    picked = select_tokens("entropy", count, size, 1, torch.from_numpy(entropy)[None, None], seed=0)[0]
    mask = np.zeros(size[0] * size[1], dtype=bool)
    mask[picked.numpy()] = True
    return mask.reshape(size)


def layers_keeping(entropy: NDArray[np.float32], plan: ScalePlan) -> NDArray[np.float64]:
    """`[h, w]`: for each token the share of the running layers that keep it."""
    masks = [kept_mask(entropy, plan.kept[layer], plan.size) for layer in plan.layers]
    return np.asarray(np.mean(masks, axis=0))


@charted
def entropy_maps(measurements: Measurements, layer: int) -> Any:
    """A row an example: the image, then one layer's entropy at the late scales over it."""
    shown, scales = examples_shown(measurements), scales_shown(measurements)
    sheet = _Sheet(measurements, shown, len(scales), BAR_ROOM)
    for column, scale in enumerate(scales, start=1):
        maps = [measurements.examples[f"entropy.{i}.{scale}"][layer] for i in shown]
        low, high = np.quantile(np.stack(maps), (0.01, 0.99))
        for row, values in enumerate(maps):
            axes, image = sheet.panel(row, column), sheet.images[row]
            axes.imshow(_grey(image), cmap="gray", vmin=0, vmax=1)
            drawn = axes.imshow(_enlarged(values, image.shape), cmap="magma", vmin=low, vmax=high, alpha=0.75)
        h, w = measurements.sizes[scale]
        sheet.title(column, f"scale {scale}: {h}×{w}")
        sheet.bar(column, drawn, "nats")
    return sheet.figure


@charted
def kept_tokens(measurements: Measurements, schedule: Schedule) -> Any:
    """A row an example: the image, then each pruned scale with its tokens as clear as layers keep them."""
    shown, plans = examples_shown(measurements), pruned_plans(schedule)[-MAPS_MAX:]
    sheet = _Sheet(measurements, shown, len(plans), 0.05)
    for column, plan in enumerate(plans, start=1):
        least, most = min(n for n in plan.kept if n), max(plan.kept)
        kept = f"{least}" if least == most else f"{least} to {most}"
        sheet.title(column, f"scale {plan.scale}: {plan.size[0]}×{plan.size[1]}\n{kept} of {plan.count} kept")
        for row, example in enumerate(shown):
            image = sheet.images[row]
            entropy = measurements.examples[f"entropy.{example}.{plan.entropy_from}"][plan.entropy_layer]
            clear = SHINES_THROUGH + (1 - SHINES_THROUGH) * layers_keeping(entropy, plan)
            shown_share = _enlarged(clear, image.shape)[..., None]
            sheet.panel(row, column).imshow(image * shown_share + DROPPED_GREY * (1 - shown_share), vmin=0, vmax=1)
    return sheet.figure


class _Sheet:
    """A figure of equal panels laid out by hand: rows are examples, the first column shows them."""

    def __init__(self, measurements: Measurements, shown: list[int], maps: int, bottom: float) -> None:
        self.images = [_image(measurements, example) for example in shown]
        height, width = self.images[0].shape[:2]
        self.panel_size = PANEL * min(1.0, width / height), PANEL * min(1.0, height / width)
        self.size = (
            LEFT + (maps + 1) * (self.panel_size[0] + GAP),
            TOP + len(shown) * (self.panel_size[1] + GAP) + bottom,
        )
        self.figure = new_figure(*self.size)
        self.figure.set_layout_engine("none")
        self.figure.set_dpi(DOTS_PER_INCH)
        for row, example in enumerate(shown):
            axes = self.panel(row, 0)
            axes.imshow(self.images[row])
            axes.set_ylabel(f"prompt {example + 1}", color=INK)
        self.title(0, "dense image")

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        """Left and lower edge of a panel, in inches."""
        return (
            LEFT + column * (self.panel_size[0] + GAP),
            self.size[1] - TOP - row * (self.panel_size[1] + GAP) - self.panel_size[1],
        )

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        return self.figure.add_axes((x / self.size[0], y / self.size[1], width / self.size[0], height / self.size[1]))

    def panel(self, row: int, column: int) -> Any:
        """Empty axes in the image's pixels."""
        axes = self._axes(*self._corner(row, column), *self.panel_size)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def title(self, column: int, text: str) -> None:
        """Above the first row."""
        x, y = self._corner(0, column)
        self.figure.text(x / self.size[0], (y + self.panel_size[1] + GAP) / self.size[1], text, fontsize=9, va="bottom")

    def bar(self, column: int, drawn: Any, unit: str) -> None:
        """Colour bar beneath the last row."""
        x, y = self._corner(len(self.images) - 1, column)
        axes = self._axes(x, y - GAP - BAR_HEIGHT, self.panel_size[0], BAR_HEIGHT)
        low, high = drawn.get_clim()
        # ticks at the ends would run into the next bar's
        ticks = [low + part * (high - low) for part in (0.12, 0.5, 0.88)]
        bar = self.figure.colorbar(drawn, cax=axes, orientation="horizontal", ticks=ticks, format="%.2f")
        bar.solids.set_alpha(1)
        bar.outline.set_visible(False)
        bar.set_label(unit, fontsize=8, labelpad=1)
        axes.tick_params(labelsize=7.5, length=2)


def _image(measurements: Measurements, example: int) -> Image:
    """`[H, W, 3]` in [0, 1], at most `IMAGE_SIDE_MAX` pixels high and wide."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(measurements.examples[f"image.{example}"])
    image.thumbnail((IMAGE_SIDE_MAX, IMAGE_SIDE_MAX), Pillow.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255


def _grey(image: Image) -> Image:
    return np.asarray(image @ np.array([0.299, 0.587, 0.114]))


def _enlarged(values: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.floating]:
    """`[h, w]` to the image's pixels; each token stays one flat rectangle."""
    rows = np.arange(shape[0]) * values.shape[0] // shape[0]
    columns = np.arange(shape[1]) * values.shape[1] // shape[1]
    return values[np.ix_(rows, columns)]
