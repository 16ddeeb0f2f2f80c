"""A BERT with random weights and a small tokenizer in a folder: a backbone of any size that need not be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmplex_tools.bench.fair.generator import WORDS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 256,
    "initializer_range": 0.2,
}
"""Of `BertConfig`: everything works, nothing is measured. Weights are large, so that layers and adapters matter."""


def make_random_bert(folder: Path, *, small: bool = False, seed: int = 0) -> Path:
    """Save a model of BERT-base's size (or `SMALL`), without a pooler, and a tokenizer into ``folder``; returns it."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(**(SMALL if small else {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    word_pieces((*SPECIAL, *WORDS), config.max_position_embeddings).save_pretrained(folder)
    return folder


def word_pieces(words: Sequence[str], max_length: int) -> Any:
    """BERT's kind of tokenizer for this vocabulary, `SPECIAL` first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
