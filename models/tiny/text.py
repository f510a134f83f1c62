"""The tiny model's tokenizer: one id a word of a closed list.

Captions come from a grammar of some fifty words, so a word list is exact where a subword model would only add weights.
Pure Python and NumPy: an engine tokenizes prompts with this file and has no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...profiles.errors import ToprovarError
from .vocabulary import END, PAD, UNKNOWN, WORDS

_WORD = re.compile(r"\w+")


class Encoded(NamedTuple):
    """Tokenized texts.

    Attributes:
        ids: `[n, T]` int64, each row ending in `</s>` and padded with 0.
        lengths: `[n]` int64, tokens of each row with its `</s>`, at least 1.
        cut: `[n]` bool, whether the text had more words than fit and lost the last of them.
    """

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    cut: npt.NDArray[np.bool_]


class WordTokenizer:
    """Lower-cases, drops punctuation, and looks every word up; words not in the list become `<unk>`.

    Args:
        words: The list, whose first three entries are `<pad>`, `<unk>` and `</s>`.
        max_length: Most tokens of a text, `</s>` included.

    Raises:
        ToprovarError: `words` repeats a word or starts differently, or `max_length` is below 1.
    """

    def __init__(self, words: Sequence[str] = WORDS, max_length: int = 16) -> None:
        if tuple(words[:3]) != WORDS[:3]:
            raise ToprovarError(f"word list starts with {list(words[:3])}; it must start with {list(WORDS[:3])}")
        if len(set(words)) != len(words):
            repeated = sorted({word for word in words if list(words).count(word) > 1})
            raise ToprovarError(f"word list repeats {repeated}; give every word once")
        if max_length < 1:
            raise ToprovarError(f"max_length must be at least 1, got {max_length}")
        self.words = tuple(words)
        self.max_length = max_length
        self._id = {word: index for index, word in enumerate(words)}

    def encode(self, texts: Sequence[str], width: int | None = None) -> Encoded:
        """Tokenizes `texts`; an empty text is `</s>` alone.

        Args:
            texts: n strings.
            width: Columns T of the result, between the longest row and `max_length`; by default the longest row.

        Raises:
            ToprovarError: `texts` is one string, or `width` does not hold the longest row.
        """
        if isinstance(texts, str):
            raise ToprovarError("texts is one string; pass a list of strings")
        rows = [[self._id.get(word, UNKNOWN) for word in _WORD.findall(text.lower())] for text in texts]
        kept = [[*row[: self.max_length - 1], END] for row in rows]
        lengths = np.array([len(row) for row in kept], np.int64)
        longest = int(lengths.max(initial=1))
        if width is not None and not longest <= width <= self.max_length:
            raise ToprovarError(f"width {width}: must be between {longest} (longest text) and {self.max_length}")
        ids = np.full((len(kept), width or longest), PAD, np.int64)
        for index, row in enumerate(kept):
            ids[index, : len(row)] = row
        return Encoded(ids, lengths, np.array([len(row) > self.max_length - 1 for row in rows], np.bool_))
