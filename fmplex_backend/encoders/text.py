"""The input side of text vFMs: bytes from the wire → token ids, by each vFM's own rules. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import InvalidInput
from fmplex_backend.messages import Tokens
from fmplex_backend.repository.artifact import EncoderSpec


@dataclass(frozen=True)
class EncodedRow:
    """One row, ready for the backbone."""

    tokens: Tokens
    """``input_ids`` int32 [tokens], and ``token_type_ids`` int8 [tokens] where the row is a pair."""
    offsets: list[tuple[int, int]] | None = None
    """Per token, the characters of the text that it stands for, (0, 0) for special tokens; where that was asked for."""

    @property
    def size(self) -> int:
        """Length in tokens, special tokens included."""
        return len(self.tokens["input_ids"])


class TextEncoder:
    """Tokenizes for every vFM of one backbone; ``encode`` may be called from any thread."""

    def __init__(self, facts: BackboneFacts) -> None:
        self._tokenizer = Tokenizer.from_str(facts.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._facts = facts
        self._lock = Lock()  # truncation is a setting of the tokenizer, not an argument

    def encode(
        self,
        spec: EncoderSpec,
        texts: Sequence[bytes | str],
        pairs: Sequence[bytes | str] | None,
        *,
        offsets: bool = False,
    ) -> list[EncodedRow]:
        """Encode one request's rows. Raises `InvalidInput` naming the row, the value and the limit.

        ``offsets``: whether they are wanted; they take ten times the memory of the tokens.
        """
        if spec.pair != (pairs is not None):
            raise InvalidInput(
                "takes a pair of texts, so 'text_pair' must be given" if spec.pair else "takes no 'text_pair'"
            )
        firsts = [prepare(text, spec, f"row {row}: text") for row, text in enumerate(texts)]
        if pairs is None:
            return self._tokenize(spec, firsts, offsets)
        seconds = [prepare(text, spec, f"row {row}: text_pair", prefix=False) for row, text in enumerate(pairs)]
        return self._tokenize(spec, list(zip(firsts, seconds, strict=True)), offsets)

    def _tokenize(self, spec: EncoderSpec, rows: Sequence[str | tuple[str, str]], offsets: bool) -> list[EncodedRow]:
        limit = spec.max_length or self._facts.max_length
        with self._lock:
            if spec.truncation:
                self._tokenizer.enable_truncation(limit, strategy="longest_first")
            else:
                self._tokenizer.no_truncation()
            encodings = self._tokenizer.encode_batch(rows)
        return [self._row(row, encoding, limit, spec.pair, offsets) for row, encoding in enumerate(encodings)]

    def _row(self, row: int, encoding: Any, limit: int, pair: bool, offsets: bool) -> EncodedRow:
        ids = np.array(encoding.ids, dtype=np.int32)
        if len(ids) > limit:
            raise InvalidInput(f"row {row}: text has {len(ids)} tokens, the limit is {limit}; shorten it")
        if len(ids) == 0:
            raise InvalidInput(f"row {row}: text has no tokens")
        tokens: Tokens = {"input_ids": ids}
        if pair and self._facts.token_type_ids:
            tokens["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int8)
        return EncodedRow(tokens, list(encoding.offsets) if offsets else None)


def prepare(text: bytes | str, spec: EncoderSpec, where: str, *, prefix: bool = True) -> str:
    """Decode and normalize one text by ``spec``; ``where`` opens the message. Raises `InvalidInput`."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(raw) > spec.max_bytes:
        raise InvalidInput(f"{where} is {len(raw)} bytes long, the limit is {spec.max_bytes} (encoder.max_bytes)")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not valid UTF-8: {error.reason} at byte {error.start}") from None
    if spec.collapse_whitespace:
        text = " ".join(text.split())
    if not text.strip():
        raise InvalidInput(f"{where} is empty")
    if spec.lowercase:
        text = text.lower()
    return spec.prefix + text if prefix else text
