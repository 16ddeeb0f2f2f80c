"""A small tokenizer, made without transformers and torch."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("good", "bad", "film", "a", *string.ascii_lowercase[1:], *(f"##{c}" for c in string.ascii_lowercase))


def tokenizer() -> str:
    """BERT's kind, serialized."""
    vocab = {word: number for number, word in enumerate((*_SPECIAL, *_WORDS))}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return made.to_str()
