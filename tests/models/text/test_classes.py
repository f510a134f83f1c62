"""Class numbers and names as prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toprovar.models.text.classes import ClassEncoder, ClassNames
from toprovar.profiles.errors import PromptError

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark,  white shark")


def test_numbers_and_names() -> None:
    names = ClassNames(3, NAMES)
    assert names.numbers(["0", " Goldfish ", "White Shark", "tench, tinca tinca", "Tinca  tinca"]) == [0, 1, 2, 0, 0]
    assert ClassNames(1000).numbers(["0", "999"]) == [0, 999]


@pytest.mark.parametrize("prompt", ["3", "-1", "shark", "", "²"])
def test_unknown_classes_are_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="expected a number from 0 to 2, or a name of the classes"):
        ClassNames(3, NAMES).numbers([prompt])
    with pytest.raises(PromptError, match="names need a file of names"):
        ClassNames(3).numbers(["goldfish"])


def test_a_file_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    assert ClassNames.read(3, str(path)).names == NAMES
    assert ClassNames.read(3, "").names == ()
    with pytest.raises(PromptError, match="3 names for 4 classes"):
        ClassNames.read(4, str(path))
    with pytest.raises(PromptError, match="class names cannot be read"):
        ClassNames.read(3, str(tmp_path / "none.txt"))


def test_features_are_rows_of_the_embedding() -> None:
    embedding = torch.arange(8.0).reshape(4, 2)
    text = ClassEncoder(ClassNames(3, NAMES), embedding).encode_prompts(["2", "tench"])
    assert torch.equal(text.features, torch.tensor([[[4.0, 5.0]], [[0.0, 1.0]]]))
    assert text.lengths.tolist() == [1, 1]
    assert text.cut == (False, False)
