"""`build_report.html`: the build report for the eye; one file that needs nothing beside it and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..profiles.pages import fill_page

TEMPLATE = Path(__file__).with_name("build_report.html")
PAGE = "build_report.html"
BAR_PIXELS = 160
COLUMNS = ("plan", "layers", "precision", "plugin nodes", "inputs", "weights", "MB", "seconds", "")


def page(content: dict[str, Any]) -> str:
    """The page of a report (`build_report.report`)."""
    title = f"Build report: {content['flavour']} {content['version']}"
    parts = {"title": html.escape(title), "facts": _facts(content), "plans": _plans(content)}
    return fill_page(TEMPLATE, parts)


def _facts(content: dict[str, Any]) -> str:
    total = content["total"]
    rows = [
        ("Built for", ", ".join(f"sm_{sm}" for sm in content["sm"])),
        ("Precision", content["precision"]),
        ("Optimisation level", content["opt_level"]),
        ("A request", f"up to {content['max_batch']} images and {content['max_text']} text tokens"),
        ("Plans", f"{len(content['plans'])}, {total['bytes'] / 1e6:.2f} MB in {total['seconds']:.0f} s"),
        *((f"Rung {name}, after the decision", ", ".join(files) or "nothing") for name, files in content["rungs"].items()),
        ("Kernels of the attention plugin, SHA-256", content["kernel_hash"] or "none: the function’s body runs"),
    ]
    lines = (f"<tr><th>{html.escape(name)}</th><td><code>{html.escape(str(value))}</code></td></tr>" for name, value in rows)
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _plans(content: dict[str, Any]) -> str:
    widest = max(plan["bytes"] for plan in content["plans"].values())
    lines = [_row(COLUMNS, "th")]
    for file, plan in sorted(content["plans"].items()):
        bar = f'<span class="bar" style="width:{BAR_PIXELS * plan["bytes"] / widest:.0f}px"></span>'
        counts = (len(plan["inputs"]), len(plan["weights"]))
        lines.append(_row((html.escape(file), *_cells(plan, content["precision"], *counts), bar)))
    lines.append(_row(("all", *_cells(content["total"], "", "", ""), ""), total=True))
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cells(entry: dict[str, Any], precision: str, inputs: int | str, weights: int | str) -> tuple[str, ...]:
    size, seconds = f"{entry['bytes'] / 1e6:.2f}", f"{entry['seconds']:.1f}"
    return (f"{entry['layers']:,}", html.escape(precision), str(entry["plugins"]), str(inputs), str(weights), size, seconds)


def _row(cells: Sequence[str], tag: str = "td", total: bool = False) -> str:
    """One row of cells that are HTML already; all but plan, precision and bar are numbers."""
    kinds = ["" if index in (0, 2, len(cells) - 1) else ' class="n"' for index in range(len(cells))]
    inner = "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f'<tr class="total">{inner}</tr>' if total else f"<tr>{inner}</tr>"
