"""Reports share one style sheet, which stands in each page; a template that misses a part is an error, not a hole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toprovar.profiles.pages import STYLE, fill_page

TEMPLATES = ("compile/build_report.html", "calibrate/report.html", "benchmarks/sweep/report.html")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_report_has_the_one_style_and_no_other(root: Path, name: str) -> None:
    text = (root / name).read_text()
    parts = {part: f"<p>{part} costs $5</p>" for part in set(re.findall(r"\$(\w+)", text)) - {"style"}}
    page = fill_page(root / name, parts)
    assert re.findall(r"<style>\n(.*?)\n</style>", page, re.DOTALL) == [STYLE.read_text().rstrip()]
    assert all(part in page for part in parts.values())
    assert "<link" not in page
    classes = {kind for found in re.findall(r'class="([^"]+)"', text) for kind in found.split()}
    assert all(f".{kind}" in STYLE.read_text() for kind in classes)


def test_missing_part_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<style>$style</style>$facts")
    with pytest.raises(KeyError, match="facts"):
        fill_page(tmp_path / "page.html", {})
