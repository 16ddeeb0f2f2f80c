"""What plug-ins that read do with tokens: the tokenizer's facts, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import TextInput
from fmplex_backend.errors import Refused


def fast_tokenizer(folder: Path, spec: str) -> Any:
    """Raises `Refused` where there is none in fast form."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise Refused(f"backbone {spec!r}: its tokenizer has no fast (tokenizer.json) form")
    return tokenizer


def text_input(tokenizer: Any, spec: str, *, token_type_ids: bool = False) -> TextInput:
    """Raises `Refused` where no token can stand for padding."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise Refused(f"backbone {spec!r}: its tokenizer has neither a pad nor an end-of-sequence token")
    return TextInput(tokenizer.backend_tokenizer.to_str(), int(pad), token_type_ids)


def padded(rows: Sequence[Array], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 [n, longest], padded on the right."""
    longest = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), longest), pad, np.int64), np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def a_text(row: int, length: int, pad: int) -> Array:
    """Tokens, int32 [length], other ones for every number ``row``: it in binary."""
    zero, one = [token for token in range(3) if token != pad][:2]
    return np.where(row >> np.arange(length).clip(max=62) & 1, one, zero).astype(np.int32)
