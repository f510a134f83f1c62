"""Features of prompts at run time: encoded once, handed out again, the oldest forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_model import small_profile
from toprovar.runtime import text
from toprovar.runtime.text import TextSource


@pytest.fixture
def source() -> TextSource:
    manifest = SimpleNamespace(text_encoder={"kind": "random", "seed": 0})
    engine: Any = SimpleNamespace(manifest=manifest, profile=small_profile(), text_device="cpu")
    return TextSource(engine)


def test_the_same_prompts_are_encoded_once(source: TextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source.encode(["a red star", "two rings"])
    monkeypatch.setattr(source._encoder, "encode_prompts", lambda _: pytest.fail("encoded again"))
    again = source.encode(["a red star", "two rings"])
    assert np.array_equal(again.text, first.text)
    assert again.lengths.tolist() == [4, 3]


def test_the_oldest_prompts_are_forgotten(source: TextSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "KEPT_CALLS", 2)
    for prompt in ("one", "two", "one", "three"):
        source.encode([prompt])
    assert list(source._known) == [("one",), ("three",)]
