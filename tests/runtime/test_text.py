"""Features of prompts at run time: encoded once, handed out again, the oldest forgotten."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_model import small_profile
from toprovar.models.text.llm import LlmTextEncoder
from toprovar.models.text.random_features import RandomTextEncoder
from toprovar.models.text.t5 import T5TextEncoder
from toprovar.profiles.errors import PromptError, ToprovarError
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


def test_names_of_classes_may_come_with_the_request(tmp_path: Path) -> None:
    """A bundle without names told its user to pass a file of names, and did not read it."""
    (tmp_path / "names.txt").write_text("tench, Tinca tinca\ngoldfish\n")
    embedding = np.arange(6, dtype=np.float32).reshape(3, 2)
    manifest = SimpleNamespace(text_encoder={"kind": "classes", "names": []})
    engine: Any = SimpleNamespace(manifest=manifest, tensor=lambda _: embedding)
    with pytest.raises(PromptError, match=r"from 0 to 1, names need a file of names \(--text-encoder\)"):
        TextSource(engine).encode(["goldfish"])
    found = TextSource(engine, str(tmp_path / "names.txt")).encode(["goldfish", "Tinca  Tinca"])
    assert np.array_equal(found.text[:, 0], embedding[[1, 0]])


def test_a_source_that_would_not_be_read_is_refused(source: TextSource) -> None:
    with pytest.raises(ToprovarError, match="flan-t5-xl: this bundle was built with random weights"):
        TextSource(source.engine, "flan-t5-xl")


@pytest.mark.parametrize(("kind", "encoder"), [("t5", T5TextEncoder), ("llm", LlmTextEncoder)])
def test_loading_an_encoder_is_told_once(kind: str, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gigabytes, and takes seconds."""
    features = RandomTextEncoder(4, 8, 0)
    monkeypatch.setattr(encoder, "load", lambda *_, **options: features)
    told: list[str] = []
    manifest = SimpleNamespace(text_encoder={"kind": kind, "source": "google/flan-t5-xl", "padding": "right"})
    engine: Any = SimpleNamespace(manifest=manifest, profile=small_profile(), text_device="cpu", tell=told.append)
    source = TextSource(engine)
    for prompt in ("one", "two"):
        source.encode([prompt])
    assert told == ["loading the text encoder google/flan-t5-xl"]
