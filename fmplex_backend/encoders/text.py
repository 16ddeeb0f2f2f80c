"""The input side of text vFMs: bytes from the wire → token ids, by each vFM's own rules. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts, TextInput
from fmplex_backend.encoders.base import EncodedRow, Encoder, check_tensors
from fmplex_backend.errors import InvalidInput
from fmplex_backend.messages import Tokens
from fmplex_backend.repository.modalities import EncoderSpec, TextSpec


class TextEncoder(Encoder):
    """Tokenizes for every vFM of one backbone."""

    def __init__(self, facts: BackboneFacts) -> None:
        assert isinstance(facts.input, TextInput)
        self._own, self._max_length = facts.input, facts.max_length
        self._tokenizer = Tokenizer.from_str(self._own.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lock = Lock()  # truncation is a setting of the tokenizer, not an argument

    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """See `Encoder`; a row is as `encode_texts` makes it."""
        assert isinstance(spec, TextSpec)
        check_tensors(spec, inputs)
        texts, pairs = (_column(inputs.get(name)) for name in ("text", "text_pair"))
        return self.encode_texts(spec, texts or [], pairs, offsets=offsets)

    def encode_texts(
        self,
        spec: TextSpec,
        texts: Sequence[bytes | str],
        pairs: Sequence[bytes | str] | None,
        *,
        offsets: bool = False,
    ) -> list[EncodedRow]:
        """``input_ids`` int32 [tokens], and ``token_type_ids`` int8 [tokens] where the row is a pair.

        Sizes are in tokens, special tokens included. See `Encoder` for the rest.
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

    def _tokenize(self, spec: TextSpec, rows: Sequence[str | tuple[str, str]], offsets: bool) -> list[EncodedRow]:
        limit = spec.max_length or self._max_length
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
        if pair and self._own.token_type_ids:
            tokens["token_type_ids"] = np.array(encoding.type_ids, dtype=np.int8)
        return EncodedRow(tokens, len(ids), list(encoding.offsets) if offsets else None)


def _column(array: Array | None) -> list[bytes] | None:
    """The texts of a tensor [rows, 1]."""
    if array is None:
        return None
    return [bytes(value) if not isinstance(value, str) else value.encode() for value in array[:, 0]]


def prepare(text: bytes | str, spec: TextSpec, where: str, *, prefix: bool = True) -> str:
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
