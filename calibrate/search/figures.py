"""The front of a search, and what single changes cost, as figures and a table for the report."""

from __future__ import annotations

from typing import Any

from ..figures import BLUE, GREY, ORANGE, charted, new_figure

PSNR_SHOWN = 60.0


@charted
def front_chart(found: dict[str, Any]) -> Any:
    """PSNR over speed-up: the front, the products of skip-N and noguide-M, and the chosen point, held out too."""
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    for name, points, color, marker in (
        ("skip-N and noguide-M, best products", found["products"], GREY, "s"),
        ("front of the search", found["front"], BLUE, "o"),
    ):
        shown = [p for p in points if p["psnr_db"] < PSNR_SHOWN]
        axes.plot(
            [p["speedup"] for p in shown], [p["psnr_db"] for p in shown], color=color, marker=marker, markersize=4, label=name
        )
    chosen = found["chosen"]
    axes.plot(chosen["speedup"], chosen["psnr_db"], color=ORANGE, marker="o", markersize=9, linestyle="", label="chosen")
    axes.plot(
        chosen["speedup"], chosen["held_out_psnr_db"], color=ORANGE, marker="x", markersize=8, linestyle="",
        label="chosen, prompts held out",
    )  # fmt: skip
    axes.set_xscale("log")
    ticks = (1, 1.5, 2, 3, 4, 6, 8, 12, 20)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        "speed-up in FLOPs" if found["costs"] is None else f"speed-up in latency on {found['costs']['target']}, predicted"
    )
    axes.set_ylabel("PSNR to dense, dB")
    axes.set_title("What the search found")
    axes.legend(loc="upper right")
    return figure


@charted
def singles_chart(found: dict[str, Any]) -> Any:
    """What pruning a share of one scale's tokens costs alone, by fill."""
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    for scale in sorted({row["scale"] for row in found["single_tokens"]}):
        for fill, style in (("hold", "-"), ("cache", ":")):
            rows = [row for row in found["single_tokens"] if row["scale"] == scale and row["fill"] == fill]
            rows.sort(key=lambda row: row["share"])
            color = f"C{scale % 10}"
            label = f"scale {scale}, {fill}"
            axes.plot([r["share"] for r in rows], [r["mse"] for r in rows], style, color=color, marker=".", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("share of the tokens that run")
    axes.set_ylabel("mean squared error")
    axes.set_title("One scale pruned, everything else dense")
    if found["single_tokens"]:
        axes.legend(ncols=2, loc="upper right")
    return figure
