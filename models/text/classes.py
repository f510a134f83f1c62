"""Prompts of a class-conditional model: the number of a class, or its name where a file of names is given. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...profiles.errors import PromptError
from . import TextFeatures

if TYPE_CHECKING:
    from torch import Tensor


class ClassNames:
    """What numbers and names the classes have.

    Args:
        count: Number of classes; their numbers are 0 to count - 1.
        names: Of each class, several separated by commas; empty where only numbers are known.
    """

    def __init__(self, count: int, names: Sequence[str] = ()) -> None:
        if names and len(names) != count:
            raise PromptError(f"{len(names)} names for {count} classes; expected one line a class, several names by commas")
        self.count, self.names = count, tuple(names)
        self._numbers: dict[str, int] = {}
        for number, line in enumerate(self.names):
            for name in (line, *line.split(",")):
                # of two classes of one name the first is meant
                self._numbers.setdefault(_plain(name), number)

    @classmethod
    def read(cls, count: int, path: str) -> ClassNames:
        """Names from a file, one line a class; an empty path knows numbers only.

        Raises:
            PromptError: The file cannot be read, or has another number of lines.
        """
        if not path:
            return cls(count)
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise PromptError(f"{path}: class names cannot be read ({err}); pass a text file, one line a class") from err
        return cls(count, lines)

    def numbers(self, prompts: Sequence[str]) -> list[int]:
        """The class of each prompt.

        Raises:
            PromptError: A prompt is neither a number in range nor a known name.
        """
        return [self._number(prompt) for prompt in prompts]

    def _number(self, prompt: str) -> int:
        text = _plain(prompt)
        if text.isascii() and text.isdigit() and int(text) < self.count:
            return int(text)
        if text in self._numbers:
            return self._numbers[text]
        known = "or a name of the classes" if self.names else "names need a file of names (--text-encoder)"
        raise PromptError(f"prompt {prompt!r} is no class; expected a number from 0 to {self.count - 1}, {known}")


class ClassEncoder:
    """A class as a text of one token: the features are the embedding that the transformer itself holds."""

    def __init__(self, names: ClassNames, embedding: Tensor) -> None:
        self.names, self.embedding = names, embedding

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """`[B, 1, C]`, every length 1, nothing cut."""
        import torch

        numbers = self.names.numbers(prompts)
        features = self.embedding[numbers].detach().unsqueeze(1)
        return TextFeatures(features, torch.ones(len(numbers), dtype=torch.int64), (False,) * len(numbers))


def _plain(name: str) -> str:
    return " ".join(name.lower().split())
