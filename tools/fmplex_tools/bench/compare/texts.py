"""Texts of an exact number of tokens, each unlike every other: rows that are the same would run as one.

All words have four letters and are one token each of the uncased BERT vocabulary (MiniLM's, bert-base-uncased), so a
text of so many tokens always has the same bytes, and making one is slicing.
"""

from __future__ import annotations

import random

from fmplex_backend.errors import InvalidInput

_WORDS = (
    "with that from were this they have also been when into time what said over then "
    "more like back them only some just made than most down well year will city such "
    "used part know your many both even head team born film long work high eyes took "
    "life same each name much four area here away left home best make hand last very"
)
WORDS = tuple(_WORDS.split())
SPECIAL_TOKENS = 2
"""[CLS] and [SEP]."""
DIGITS = 4
"""So many words at the start of a text are its number, to the base `len(WORDS)`: 16.7 million texts."""
MIN_TOKENS, MAX_TOKENS = DIGITS + SPECIAL_TOKENS, 512
_BASE = len(WORDS)
_STRIDE = len(WORDS[0]) + 1


class Texts:
    """The texts of ``seed``: text ``number`` is the same whenever it is made."""

    def __init__(self, seed: int = 0) -> None:
        drawn = random.Random(seed).choices(range(_BASE), k=MAX_TOKENS - MIN_TOKENS)
        self._bodies = ["".join(f" {WORDS[(word + turn) % _BASE]}" for word in drawn) for turn in range(_BASE)]

    def make(self, number: int, tokens: int) -> str:
        """A text of ``tokens`` tokens, special ones included, unlike that of any other number below 64^`DIGITS`.

        Raises `InvalidInput` for fewer than `MIN_TOKENS` or more than `MAX_TOKENS`.
        """
        check_tokens(tokens)
        digits = " ".join(WORDS[number // _BASE**place % _BASE] for place in range(DIGITS))
        return digits + self._bodies[number % _BASE][: (tokens - MIN_TOKENS) * _STRIDE]


def check_tokens(tokens: int) -> None:
    """Raise `InvalidInput` where no text has so many."""
    if not MIN_TOKENS <= tokens <= MAX_TOKENS:
        raise InvalidInput(f"a text of {tokens} tokens; {MIN_TOKENS} to {MAX_TOKENS}, special tokens included")
