"""Scale schedules of the Infinity family: which token grids an aspect ratio and a pixel budget run through.

The lists are data (`infinity_scales.yaml`), not a formula: they were set by hand by the model's authors, and the rotary
positions of every budget refer to the last grid of the 1M list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .errors import ProfileError
from .strict import read_yaml

Size = tuple[int, int]
"""(h, w) in tokens."""


def tokens_through(sizes: Sequence[Size], scale: int) -> int:
    """Tokens of all scales up to this one."""
    return sum(h * w for h, w in sizes[: scale + 1])


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, int], dict[float, tuple[Size, ...]]]:
    data = read_yaml(Path(__file__).with_name("infinity_scales.yaml"), ProfileError)
    ratios = {float(ratio): tuple((h, w) for h, w in sizes) for ratio, sizes in data["ratios"].items()}
    return dict(data["budgets"]), ratios


def budgets() -> tuple[str, ...]:
    """Names of the pixel budgets, smallest first."""
    return tuple(_tables()[0])


def templates() -> tuple[float, ...]:
    """The 15 height/width ratios, in the official order."""
    return tuple(_tables()[1])


def nearest_template(ratio: float) -> float:
    """The template nearest to `ratio` (height / width); of two equally near ones the first."""
    if not ratio > 0:
        raise ProfileError(f"aspect ratio must be height / width > 0, got {ratio!r}")
    return min(templates(), key=lambda template: abs(template - ratio))


def scale_sizes(ratio: float, budget: str) -> tuple[Size, ...]:
    """Token grids (h, w), coarse to fine, of the nearest template under a pixel budget (`0.06M` to `1M`)."""
    counts, ratios = _tables()
    if budget not in counts:
        raise ProfileError(f"pixel budget {budget!r} is not known; choose one of {', '.join(counts)}")
    return ratios[nearest_template(ratio)][: counts[budget]]


def rope_reference(ratio: float) -> Size:
    """The grid that rotary positions are measured on: the last scale of the 1M schedule, whatever the budget."""
    return _tables()[1][nearest_template(ratio)][-1]
