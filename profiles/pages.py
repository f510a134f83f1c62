"""Reports as HTML pages: each has a template of its own, all share one style sheet, and none needs a file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

STYLE = Path(__file__).with_name("pages.css")


def fill_page(template: Path, parts: Mapping[str, str]) -> str:
    """A page with its style inline.

    Args:
        template: HTML with a `$name` for each part, and `$style` within its style element.
        parts: HTML by name, all that the template asks for but `style`.
    """
    style = STYLE.read_text(encoding="utf-8").rstrip()
    return Template(template.read_text(encoding="utf-8")).substitute(parts, style=style)
