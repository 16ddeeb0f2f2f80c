"""A randomly initialised BERT of two layers: everything that a real backbone folder has, loaded in milliseconds."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import BertConfig, BertModel
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.repository.config import CONFIG_FILE, write_config
from fmplex_tools.bench.engine.random_bert import SPECIAL, word_pieces

HIDDEN = 32
MAX_LENGTH = 64
_WORDS = ("good", "bad", "film", "the", "a", "book", "is", "not", "very", "was")


def make_fm_repository(folder: Path, fm: str, backbone: Path, max_batch_size: int = 64, engines: str = "cpu") -> Path:
    """A repository with nothing but the physical FM; returns ``folder``."""
    (folder / fm / "1").mkdir(parents=True)
    config = ModelConfig(backend="fmplex", max_batch_size=max_batch_size)
    config.parameters["backbone"].string_value = str(backbone)
    config.parameters["engines"].string_value = engines
    write_config(folder / fm / CONFIG_FILE, config)
    return folder


def make_tiny_bert(folder: Path, *, hidden: int = HIDDEN, seed: int = 0) -> Path:
    """Save model (safetensors, pooler included) and WordPiece tokenizer into ``folder``; returns it."""
    vocab = [*SPECIAL, *_WORDS, *string.ascii_lowercase, *string.digits, *".,!?'-"]
    vocab += [f"##{c}" for c in string.ascii_lowercase + string.digits]
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # zeros unless told otherwise: what is done to them would not show
                torch.nn.init.normal_(parameter, std=0.02)
        model.save_pretrained(folder)
    word_pieces(vocab, MAX_LENGTH).save_pretrained(folder)
    return folder
