"""The host's encoder against transformers' own tokenizer call, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.facts import facts_of
from transformers import AutoTokenizer

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import TextSpec

WORDS = st.text(alphabet="abc good,.!é'\n", min_size=1, max_size=200).filter(str.strip)


@pytest.fixture(scope="module")
def encoder(tiny_backbone: Path) -> TextEncoder:
    return TextEncoder(facts_of(tiny_backbone))


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_backbone)


@settings(max_examples=60)
@given(text=WORDS, pair=st.none() | WORDS, limit=st.none() | st.integers(4, 64))
def test_same_tokens_as_transformers(
    encoder: TextEncoder, tokenizer: Any, text: str, pair: str | None, limit: int | None
) -> None:
    spec = TextSpec(max_length=limit, pair=pair is not None)
    (row,) = encoder.encode_texts(spec, [text], None if pair is None else [pair], offsets=True)
    wanted = tokenizer(text, pair, truncation="longest_first", max_length=limit or 64, return_offsets_mapping=True)
    assert row.tokens["input_ids"].tolist() == wanted["input_ids"]
    assert row.size == len(wanted["input_ids"]) <= (limit or 64)
    assert row.offsets == wanted["offset_mapping"]
    if pair is not None:
        assert row.tokens["token_type_ids"].tolist() == wanted["token_type_ids"]
    else:
        assert "token_type_ids" not in row.tokens


def test_order_of_preparation(encoder: TextEncoder, tokenizer: Any) -> None:
    spec = TextSpec(prefix="Good: ", lowercase=True, collapse_whitespace=True)
    (row,) = encoder.encode_texts(spec, ["  A \n\n FILM "], None)
    assert row.tokens["input_ids"].tolist() == tokenizer("Good: a film")["input_ids"]


def test_the_prefix_is_for_the_first_text_only(encoder: TextEncoder, tokenizer: Any) -> None:
    (row,) = encoder.encode_texts(TextSpec(prefix="good ", pair=True), ["film"], ["book"])
    assert row.tokens["input_ids"].tolist() == tokenizer("good film", "book")["input_ids"]


@pytest.mark.parametrize(
    ("spec", "texts", "pairs", "says"),
    [
        ({}, ["good", ""], None, "row 1: text is empty"),
        ({}, [b"\xc3("], None, "row 0: text is not valid UTF-8: invalid continuation byte at byte 0"),
        ({}, ["\ud800"], None, "row 0: text is not valid UTF-8"),
        ({"max_bytes": 3}, ["good"], None, "row 0: text is 4 bytes long, the limit is 3"),
        ({"truncation": False, "max_length": 4}, ["good good good"], None, "row 0: text has 5 tokens, the limit is 4"),
        ({"truncation": False}, ["good " * 63], None, "row 0: text has 65 tokens, the limit is 64"),
        ({"pair": True}, ["good"], None, "'text_pair' must be given"),
        ({}, ["good"], ["bad"], "takes no 'text_pair'"),
        ({"pair": True}, ["good"], [" "], "row 0: text_pair is empty"),
    ],
)
def test_refusals(encoder: TextEncoder, spec: dict[str, Any], texts: list[Any], pairs: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encoder.encode_texts(TextSpec.model_validate(spec), texts, pairs)
    assert says in str(caught.value)


def test_byte_limit_is_in_bytes_whatever_the_type(encoder: TextEncoder) -> None:
    for text in ("é", "é".encode()):
        with pytest.raises(InvalidInput, match="2 bytes"):
            encoder.encode_texts(TextSpec(max_bytes=1), [text], None)


def test_truncation_of_one_vfm_does_not_leak_into_another(encoder: TextEncoder) -> None:
    specs = [TextSpec(max_length=limit) for limit in (4, 8, 16, 32)] * 20

    def size(spec: TextSpec) -> int:
        return encoder.encode_texts(spec, ["good " * 60], None)[0].size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(size, specs)) == [spec.max_length for spec in specs]
