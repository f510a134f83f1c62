"""Rotary positions of every ratio and scale against the official integer tables, ties included."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from golden_files import golden_folder
from toprovar.models.infinity.rope import positions, rope_table, rotate
from toprovar.profiles.geometry import nearest_template, rope_reference, scale_sizes, templates

TABLES = golden_folder().parent / "data" / "rope_index_tables.json"
# half-way cases that round to even: 1.25 at 20 x 16 (a ratio of 3.5), 1.5 at 48 x 32
KNOWN = {(20, 70): [0, 4, 7, 10, 14, 18, 21], (16, 56): [0, 4, 7, 10, 14, 18, 21]}


@pytest.mark.parametrize(("count", "reference"), list(KNOWN))
def test_half_way_positions_round_to_even(count: int, reference: int) -> None:
    assert positions(count, reference)[:7].tolist() == KNOWN[count, reference]


@pytest.mark.parametrize("ratio", templates())
def test_every_scale_of_every_ratio(ratio: float) -> None:
    if not TABLES.exists():
        pytest.skip(f"no official tables at {TABLES}")
    tables: dict[str, Any] = {str(float(k)): v for k, v in json.loads(TABLES.read_text())["tables"].items()}
    sizes, (height, width) = scale_sizes(ratio, "1M"), rope_reference(ratio)
    for size, entry in zip(sizes, tables[str(ratio)], strict=True):
        assert size == (entry["h"], entry["w"])
        assert positions(size[0], height).tolist() == entry["rows"]
        assert positions(size[1], width).tolist() == entry["cols"]


def test_rotation_keeps_lengths_and_depends_on_the_difference() -> None:
    """q . k after rotation is a function of the two positions' difference alone."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 32, generator=generator).expand(1, 1, 36, 32) for _ in range(2))
    table = rope_table((6, 6), (6, 6), 32)
    rope = (table[0], table[1])
    a, b = rotate(q, rope), rotate(k, rope)
    torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1))
    products = (a @ b.transpose(-1, -2))[0, 0].reshape(6, 6, 6, 6)
    torch.testing.assert_close(products[0, 0, 1, 2], products[3, 2, 4, 4])
    assert not torch.isclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


@pytest.mark.parametrize(("ratio", "template"), [(1.0, 1.0), (1.1, 1.0), (1.2, 1.25), (16 / 9, 1.75), (0.1, 0.333), (9, 3.0)])
def test_nearest_template(ratio: float, template: float) -> None:
    assert nearest_template(ratio) == template
