"""What all baselines share: backbone, fast tokenizer, pooling, heads. Plain transformers, used as well as it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from fmplex_backend.errors import Refused
from fmplex_backend.repository.artifact import ADAPTER_DIR, ARTIFACT_FILE, HEAD_FILE, Artifact
from fmplex_backend.repository.modalities import TextSpec

logging.disable_progress_bar()  # the server's log is no terminal


@dataclass(frozen=True)
class Task:
    """One version of a task, as a fleet has it: ``vfm.json``, ``head.safetensors``, ``adapter/``."""

    name: str
    adapter: Path
    """PEFT checkpoint."""
    head: nn.Linear
    """[labels, hidden]."""

    @classmethod
    def load(cls, version: Path, device: str = "cpu") -> Task:
        """Read the folder ``<task>/<version>``. Raises `Refused` where it is no linear classifier of mean vectors."""
        artifact = Artifact.model_validate_json((version / ARTIFACT_FILE).read_text(encoding="utf-8"))
        what = (artifact.kind, artifact.head, artifact.pooling, artifact.adapter, artifact.encoder)
        if what != ("classification", "linear", "mean", True, TextSpec()):
            raise Refused(f"{version}: a baseline takes a LoRA, mean pooling and a linear classification head only")
        tensors = load_file(version / HEAD_FILE)
        head = nn.Linear(*reversed(tensors["weight"].shape))
        head.load_state_dict(tensors)
        return cls(version.parent.name, version / ADAPTER_DIR, head.requires_grad_(False).to(device))

    def probabilities(self, vectors: Tensor) -> Tensor:
        """[rows, hidden] → [rows, labels]."""
        scores: Tensor = self.head(vectors)
        return scores.softmax(-1)


class TextInput:
    """Texts → a padded batch on ``device``, by the backbone's fast tokenizer."""

    def __init__(self, backbone: Path, positions: int, device: str) -> None:
        """``positions``: most tokens that the model takes; longer texts are cut."""
        tokenizer = AutoTokenizer.from_pretrained(backbone)
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.enable_truncation(min(positions, tokenizer.model_max_length))
        self._tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        self._device = device

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 [rows, tokens of the longest]."""
        encodings = self._tokenizer.encode_batch(texts)
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
        }
        return {key: torch.from_numpy(np.array(rows, np.int64)).to(self._device) for key, rows in columns.items()}


def load_backbone(folder: Path, device: str = "cpu") -> tuple[Any, TextInput]:
    """The model in fp32, yet to be given adapters, and what makes its inputs."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model.eval().requires_grad_(False).to(device)
    return model, TextInput(folder, model.config.max_position_embeddings, device)


def mean_vectors(hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """[rows, tokens, hidden] → [rows, hidden], padding left out."""
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)
