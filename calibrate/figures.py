"""The report's charts: plain matplotlib on the Agg canvas, returned as PNG bytes that depend on nothing but the data.

No pyplot and no global state: the user's matplotlib settings are set aside while a chart is drawn.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from ..profiles.baselines import dense
from ..profiles.measurements import Measurements
from ..profiles.model import ModelProfile
from ..profiles.plan import plan_scales, scale_flops
from ..profiles.schedule import Schedule

Array = NDArray[np.float64]
P = ParamSpec("P")

INK, FAINT, BLUE, GREY, ORANGE, HATCH = "#24292f", "#d7dce1", "#2563a8", "#a3adb8", "#c8611a", "#8a949e"
SHARE_COLORS = ("#f3efe0", "#9cc5c9", "#1f5a86")
"""Colours of no, half and all tokens kept."""
STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": HATCH,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 130,
    "savefig.dpi": "figure",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "hatch.color": HATCH,
    "figure.constrained_layout.use": True,
}


def charted(draw: Callable[P, Any]) -> Callable[P, bytes]:
    """Turn a function that draws a figure into one that returns its PNG."""

    @functools.wraps(draw)
    def png(*args: P.args, **kwargs: P.kwargs) -> bytes:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            buffer = io.BytesIO()
            # a version in the metadata would change the bytes
            draw(*args, **kwargs).savefig(buffer, format="png", metadata={"Software": None})
        return _smaller(buffer.getvalue())

    return png


def _smaller(png: bytes) -> bytes:
    """The same picture with 6 bits a channel and no alpha: half the bytes, and no eye sees it."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    buffer = io.BytesIO()
    # white must stay white
    Image.fromarray(pixels & 0xFC | pixels >> 6).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def kept_shares(schedule: Schedule) -> Array:
    """`[L, S]`: share of the scale's tokens that run through the layer; 0 where the layer or the scale does not run."""
    shares = np.zeros((schedule.layers, len(schedule.scales)))
    for plan in plan_scales(schedule):
        shares[:, plan.scale] = np.array(plan.kept) / plan.count
    return shares


@charted
def schedule_picture(schedule: Schedule) -> Any:
    """Scales across, layers down, coloured by the share of tokens kept; hatched where nothing runs; guidance beneath."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = kept_shares(schedule)
    layers = schedule.layers
    figure = new_figure(10.4, 1.9 + min(5.2, 0.26 * layers))
    grid = figure.add_gridspec(2, 1, height_ratios=[max(layers, 6), 0.9], hspace=0.03)
    axes = figure.add_subplot(grid[0])
    colors = LinearSegmentedColormap.from_list("share", SHARE_COLORS)
    mesh = _mesh(axes, np.where(shares > 0, shares, np.nan), colors, vmin=0, vmax=1)
    for layer, scale in np.argwhere(shares == 0):
        axes.add_patch(_hatched(scale - 0.5, layer - 0.5))
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    _layer_ticks(axes, layers)
    axes.set_title("Share of the tokens that run (hatched: not run)")
    strip = figure.add_subplot(grid[1], sharex=axes)
    for rule in schedule.scales:
        if rule.run:
            _guidance_cell(strip, rule.scale, rule.guidance)
        else:
            strip.add_patch(_hatched(rule.scale - 0.5, -0.5))
    strip.set_ylim(-0.5, 0.5)
    strip.set_yticks([0], ["rows an image"])
    strip.tick_params(axis="y", length=0)
    for name in ("top", "right", "left", "bottom"):
        strip.spines[name].set_visible(False)
    _scale_ticks(strip, [rule.size for rule in schedule.scales])
    figure.colorbar(mesh, ax=[axes, strip], label="share of tokens kept", pad=0.015, aspect=30)
    return figure


def _guidance_cell(axes: Any, scale: int, guidance: bool) -> None:
    from matplotlib.patches import Rectangle

    color = SHARE_COLORS[-1] if guidance else SHARE_COLORS[0]
    axes.add_patch(Rectangle((scale - 0.5, -0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1.2))
    axes.text(scale, 0, "2" if guidance else "1", ha="center", va="center", color="white" if guidance else INK, fontsize=8.5)


@charted
def rho_chart(measurements: Measurements, found: dict[str, Any] | None) -> Any:
    """rho by scale: mean and range over layers; tau, the smoothing line and the first pruned scale where known."""
    sizes = measurements.sizes
    scales = [scale for scale, (h, w) in enumerate(sizes) if h * w > 1]
    rho = np.stack([measurements.rho(scale) for scale in scales])
    figure = new_figure(5.1, 3.4)
    axes = figure.add_subplot()
    axes.fill_between(scales, rho.min(axis=1), rho.max(axis=1), color=BLUE, alpha=0.16, linewidth=0, label="range over layers")
    axes.plot(scales, rho.mean(axis=1), color=BLUE, marker="o", markersize=4, label="mean over layers")
    if found:
        line, first = found["rho_line"], found["first_pruned_scale"]
        axes.plot(scales, [line[scale] for scale in scales], color=GREY, linestyle=":", linewidth=1.6, label="straight line")
        axes.axhline(found["tau"], color=ORANGE, linestyle="--", linewidth=1.1, label=f"tau = {found['tau']:.3f}")
        axes.axvline(first, color=ORANGE, linewidth=1.1, label=f"D: pruned from scale {first} on")
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of tokens")
    axes.set_title("rho: tokens below the mean entropy")
    axes.legend(loc="upper left", ncols=2, columnspacing=1.2, handlelength=1.6)
    _scale_ticks(axes, sizes, scales)
    return figure


@charted
def entropy_chart(measurements: Measurements) -> Any:
    """Entropy by scale over ln(visible keys): mean over everything, and the band of the middle 80 % of tokens."""
    sizes = measurements.sizes
    scales = [scale for scale in range(len(sizes)) if measurements.entropy_max(scale) > 0]
    most = np.array([measurements.entropy_max(scale) for scale in scales])
    mean = np.array([measurements.mean_entropy(scale).mean() for scale in scales])
    low, high = (np.array([measurements.quantile(scale, q).mean() for scale in scales]) for q in (0.1, 0.9))
    figure = new_figure(5.1, 3.4)
    axes = figure.add_subplot()
    axes.fill_between(scales, low / most, high / most, color=BLUE, alpha=0.16, linewidth=0, label="10 % to 90 % of tokens")
    axes.plot(scales, mean / most, color=BLUE, marker="o", markersize=4, label="mean")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("entropy / ln(visible keys)")
    axes.set_title("Attention entropy, 1 = uniform attention")
    axes.legend(loc="lower right")
    _scale_ticks(axes, sizes, scales)
    return figure


@charted
def layer_maps(measurements: Measurements, scored_at: int, score: Sequence[float] | None) -> Any:
    """Layers down: mean entropy, its distance from uniform attention, size of the update, and sigma1 / sigma2 with R."""
    sizes, layers = measurements.sizes, int(measurements.header["layers"])
    scales = range(len(sizes))
    entropy = np.stack([measurements.mean_entropy(scale).mean(axis=(1, 2)) for scale in scales], axis=1)
    most = np.array([measurements.entropy_max(scale) for scale in scales])
    update = np.stack([measurements.update(scale) for scale in scales], axis=1)
    figure = new_figure(10.4, 2 * (1.4 + min(5.2, 0.23 * layers)))
    grid = figure.add_gridspec(2, 2, wspace=0.05, hspace=0.05)
    for place, values, colors, title, unit in (
        (grid[0, 0], entropy, "magma", "Mean attention entropy", "nats"),
        (grid[0, 1], most - entropy, "YlGnBu", "Below the entropy of uniform attention", "nats"),
        (grid[1, 0], update, "YlGnBu", "Size of the layer's update", "norm of update / of input"),
    ):
        axes = figure.add_subplot(place)
        mesh = _mesh(axes, values, colors, norm=_root_scale(_top(values)))
        _layer_ticks(axes, layers)
        _scale_ticks(axes, sizes)
        axes.set_title(title)
        figure.colorbar(mesh, ax=axes, label=unit, pad=0.02, aspect=24)
    _ratio_bars(figure.add_subplot(grid[1, 1]), measurements, scored_at, score)
    return figure


def _root_scale(top: float) -> Any:
    """Colours by square root: one outlying layer does not flatten the others."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=top)


def _ratio_bars(axes: Any, measurements: Measurements, scale: int, score: Sequence[float] | None) -> None:
    """sigma1 / sigma2 of each layer's centred map at one scale; its score R at the bar's end where known."""
    ratio = measurements.ratio(scale)[:, 1]
    h, w = measurements.sizes[scale]
    axes.barh(range(len(ratio)), ratio, height=0.68, color=BLUE, alpha=0.85)
    for layer, value in enumerate(score or ()):
        axes.text(
            ratio[layer] + 0.01 * _top(ratio), layer, f"R {value:.2f}", va="center", fontsize=8 if len(ratio) <= 16 else 6
        )
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, _top(ratio) * 1.16)
    axes.set_ylim(len(ratio) - 0.5, -0.5)
    _layer_ticks(axes, len(ratio))
    axes.set_xlabel("sigma1 / sigma2 of the map minus its mean")
    axes.set_title(f"Structure of the entropy map at scale {scale} ({h}×{w})")


@charted
def flops_chart(schedule: Schedule, profile: ModelProfile) -> Any:
    """GFLOPs of each scale, dense beside the schedule."""
    figure = new_figure(10.4, 3.0)
    axes = figure.add_subplot()
    for offset, color, label, item in ((-0.2, FAINT, "dense", dense(profile)), (0.2, BLUE, schedule.policy, schedule)):
        plans = plan_scales(item)
        costs = [scale_flops(plan, profile) / 1e9 for plan in plans]
        name = f"{label}: {sum(costs):,.4g} GFLOPs an image"
        axes.bar([plan.scale + offset for plan in plans], costs, width=0.38, color=color, label=name)
    axes.set_ylabel("GFLOPs")
    axes.set_title("Cost by scale, all rows of one image")
    axes.legend(loc="upper left")
    axes.set_xlim(-0.7, len(schedule.scales) - 0.3)
    _scale_ticks(axes, [rule.size for rule in schedule.scales])
    return figure


def _mesh(axes: Any, values: Array, colors: Any, **limits: Any) -> Any:
    """Cells with white lines between; layer 0 on top, its centre at 0."""
    layers, scales = values.shape
    edges = np.arange(scales + 1) - 0.5, np.arange(layers + 1) - 0.5
    mesh = axes.pcolormesh(*edges, values, cmap=colors, edgecolors="white", linewidth=0.8, **limits)
    axes.set_ylim(layers - 0.5, -0.5)
    for name in ("left", "bottom"):
        axes.spines[name].set_visible(False)
    return mesh


def _hatched(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor="white", edgecolor=HATCH, hatch="////", linewidth=0)


def _top(values: Array) -> float:
    """Upper end of an axis from 0; 1 where there is nothing to see."""
    top = float(values.max())
    return top if math.isfinite(top) and top > 0 else 1.0


def _every(count: int) -> list[int]:
    """At most 16 ticks for `count` layers."""
    return list(range(0, count, math.ceil(count / 16)))


def _layer_ticks(axes: Any, layers: int) -> None:
    axes.set_yticks(_every(layers))
    axes.set_ylabel("layer")


def _scale_ticks(axes: Any, sizes: Sequence[tuple[int, int]], scales: Sequence[int] | None = None) -> None:
    """Scale number and, where there is room, token grid under each scale."""
    shown = list(range(len(sizes)) if scales is None else scales)
    narrow = axes.figure.get_figwidth() / axes.get_subplotspec().get_gridspec().ncols < 6
    if narrow and len(shown) > 10:
        axes.set_xticks(shown)
        axes.set_xlabel("scale")
        return
    labels = [f"{scale}\n{sizes[scale][0]}×{sizes[scale][1]}" for scale in shown]
    axes.set_xticks(shown, labels, fontsize=7 if narrow else 8.5)
    axes.set_xlabel("scale, and its tokens as h×w")
