"""Text backbones through transformers' ``AutoModel``: encoders (BERT, MiniLM, MPNet …) and decoders alike."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.backbones.source import fingerprint, resolve
from fmplex_backend.errors import Refused
from fmplex_backend.messages import Tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TextBackbone(Backbone):
    """A transformers model that maps token ids to hidden states."""

    def __init__(self, spec: str, dtype: str, device: str) -> None:
        """Load ``spec`` (see `fmplex_backend.backbones.source`). Raises `NotFound` or `Refused`."""
        folder = local_folder(spec)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not tokenizer.is_fast:
            raise Refused(f"backbone {spec!r}: its tokenizer has no fast (tokenizer.json) form")
        self.model, info = AutoModel.from_pretrained(
            folder, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
        self.model.eval().requires_grad_(False).to(device)
        self.device = device
        self._has_pooler = _keep_trained_pooler(self.model, info["missing_keys"], spec)
        self.facts = _facts(spec, folder, self.model, tokenizer)

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """Right-pad to the longest row; ``attention_mask`` is made from the lengths."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), longest), self.facts.pad_token_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        types = np.zeros((len(rows), longest), np.int64) if self.facts.token_type_ids else None
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = row["input_ids"]
            mask[i, :n] = 1
            if types is not None and "token_type_ids" in row:
                types[i, :n] = row["token_type_ids"]
        arrays = {"input_ids": ids, "attention_mask": mask} | ({} if types is None else {"token_type_ids": types})
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the last layer."""
        output = self.model(**inputs)
        pooler_output = output.pooler_output if self._has_pooler else None
        return Features(output.last_hidden_state, inputs["attention_mask"], inputs, pooler_output)


def local_folder(spec: str) -> Path:
    """The folder with the backbone's files; a hub name is downloaded first (safetensors and tokenizer only)."""
    source = resolve(spec)
    if isinstance(source, Path):
        return source
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # many kinds: no network, no such repository, gated
        raise Refused(f"backbone {spec!r}: is no folder here, and the hub did not give it: {error}") from None


def _keep_trained_pooler(model: Any, missing: Any, spec: str) -> bool:
    """Whether the model has a pooler with weights; one that the checkpoint lacks would be random, so it goes."""
    untrained = {str(key) for key in missing}
    if body := sorted(key for key in untrained if not key.startswith("pooler.")):
        raise Refused(f"backbone {spec!r}: its weights lack {body[0]!r} and {len(body) - 1} more; it would be random")
    if getattr(model, "pooler", None) is None:
        return False
    if untrained:
        model.pooler = None
        return False
    return True


def _facts(spec: str, folder: Path, model: Any, tokenizer: Any) -> BackboneFacts:
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    biased = {name: m for name, m in model.named_modules() if isinstance(getattr(m, "bias", None), Tensor)}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise Refused(f"backbone {spec!r}: its tokenizer has neither a pad nor an end-of-sequence token")
    return BackboneFacts(
        spec=spec,
        fingerprint=fingerprint(folder),
        family="text",
        model_type=model.config.model_type,
        prefix=model.base_model_prefix,
        hidden_size=model.config.hidden_size,
        max_length=_max_length(model, tokenizer),
        layers={name: (m.out_features, m.in_features) for name, m in linear.items()},
        biases={name: m.bias.numel() for name, m in biased.items()},
        token_type_ids=_tells_pairs_apart(model, tokenizer),
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        pad_token_id=int(pad),
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
