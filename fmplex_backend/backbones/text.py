"""Text backbones through transformers' ``AutoModel``: encoders (BERT, MiniLM, MPNet …) and decoders alike."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, TextInput
from fmplex_backend.backbones.folder import load_model, touchable
from fmplex_backend.backbones.lean_bert import LeanBert, fits
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.backbones.texts import a_text, fast_tokenizer, padded, text_input
from fmplex_backend.messages import Tokens


class TextBackbone(Backbone):
    """A transformers model that maps token ids to hidden states."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        tokenizer = fast_tokenizer(folder, spec)
        self.model, whole = load_model(AutoModel, folder, spec, dtype, device, optional="pooler.")
        self.device = device
        if not whole:
            self.model.pooler = None  # without weights it would be random
        self._has_pooler = getattr(self.model, "pooler", None) is not None
        self._lean = LeanBert(self.model) if device == "cpu" and fits(self.model) else None
        self._leaned = self.model
        self.facts = _facts(spec, folder, self.model, tokenizer)
        assert isinstance(self.facts.input, TextInput)
        self._own = self.facts.input

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """Right-pad to the longest row; ``attention_mask`` is made from the lengths."""
        ids, mask = padded([row["input_ids"] for row in rows], self._own.pad_token_id)
        found = {"input_ids": ids, "attention_mask": mask}
        if self._own.token_type_ids:
            found["token_type_ids"] = types = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                if "token_type_ids" in row:
                    own = torch.from_numpy(row["token_type_ids"])
                    types[place, : len(own)] = own
        return found

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the last layer."""
        if self._lean is not None and self.model is self._leaned:  # training puts another model in its place
            hidden = self._lean(**inputs)
            pooler_output = self.model.pooler(hidden) if self._has_pooler else None
            return Features(hidden, inputs["attention_mask"], inputs, pooler_output)
        output = self.model(**inputs)
        pooler_output = output.pooler_output if self._has_pooler else None
        return Features(output.last_hidden_state, inputs["attention_mask"], inputs, pooler_output)

    @property
    def lengths(self) -> Sequence[int]:
        """In tokens."""
        return sorted({min(length, self.facts.max_length) for length in (8, 32, 128, 512)})

    def sample(self, row: int, length: int) -> Tokens:
        """See `a_text`."""
        return {"input_ids": a_text(row, length, self._own.pad_token_id)}


load = TextBackbone
"""As `registry` calls it."""


def _facts(spec: str, folder: Path, model: Any, tokenizer: Any) -> BackboneFacts:
    return BackboneFacts(
        spec=spec,
        fingerprint=fingerprint(folder),
        model_type=model.config.model_type,
        prefix=model.base_model_prefix,
        hidden_size=model.config.hidden_size,
        max_length=_max_length(model, tokenizer),
        input=text_input(tokenizer, spec, token_type_ids=_tells_pairs_apart(model, tokenizer)),
        **touchable(model),
    )


def _tells_pairs_apart(model: Any, tokenizer: Any) -> bool:
    """Whether both tokenizer and model have type ids; a BERT tokenizer may come with a model that knows none."""
    takes = "token_type_ids" in inspect.signature(type(model).forward).parameters
    types = getattr(model.config, "type_vocab_size", 0)
    return takes and types > 1 and "token_type_ids" in tokenizer.model_input_names


def _max_length(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if table is not None and getattr(table, "padding_idx", None) is not None:
        positions -= table.padding_idx + 1  # RoBERTa and MPNet count positions from behind the padding index
    return int(min(positions, tokenizer.model_max_length))
