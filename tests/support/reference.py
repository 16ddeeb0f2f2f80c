"""What is correct, by definition: plain transformers + peft + head, one row at a time. None of our engine's code."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

_tokenizer = functools.lru_cache(AutoTokenizer.from_pretrained)
_bare = functools.lru_cache(AutoModel.from_pretrained)


class Reference:
    """One version of one vFM, as its owner would have computed it without FMplex."""

    def __init__(self, version: Path, backbone: Path, *, adapter: bool = True) -> None:
        """``adapter=False`` leaves the adapter out: what a server that ignores it would answer."""
        self._vfm: dict[str, Any] = json.loads((version / "vfm.json").read_text())
        self._encoder: dict[str, Any] = self._vfm["encoder"]
        self._tokenizer = _tokenizer(backbone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self._task_model(backbone)
            if self._vfm["adapter"] and adapter:
                model = PeftModel.from_pretrained(model, version / "adapter")
        self._model = model.eval()
        config = model.active_peft_config if isinstance(model, PeftModel) else None
        self._virtual: int = getattr(config, "num_virtual_tokens", 0)
        self._head = load_file(version / "head.safetensors") if self._vfm["head"] == "linear" else None

    def _task_model(self, backbone: Path) -> Any:
        if self._vfm["head"] != "transformers":
            return copy.deepcopy(_bare(backbone))
        tokens = self._vfm["kind"] == "token_classification"
        auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
        return auto.from_pretrained(backbone, num_labels=len(self._vfm["labels"] or [0]))

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> list[NDArray[np.float32]]:
        """Logits, values or embedding of each row: [outputs], or [tokens, outputs] without pooling."""
        seconds = pairs if pairs is not None else [None] * len(texts)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says each time that feature extraction with a prompt drops type ids
            return [self._row(text, pair).numpy() for text, pair in zip(texts, seconds, strict=True)]

    def _row(self, text: str, pair: str | None) -> torch.Tensor:
        inputs = self._tokenizer(
            self._encoder["prefix"] + self._clean(text),
            None if pair is None else self._clean(pair),
            truncation="longest_first" if self._encoder["truncation"] else False,
            max_length=self._encoder["max_length"] or self._tokenizer.model_max_length - self._virtual,
            return_tensors="pt",
        )
        output = self._model(**inputs)
        if self._vfm["head"] == "transformers":
            return self._of_tokens(output.logits[0])
        hidden = output.last_hidden_state[0]  # behind a prompt: of its virtual tokens too, as PEFT gives them
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "none": self._of_tokens(hidden)}[
            self._vfm["pooling"]
        ]
        if self._head is not None:
            pooled = torch.nn.functional.linear(pooled, self._head["weight"], self._head.get("bias"))
        return torch.nn.functional.normalize(pooled, dim=-1) if self._vfm["normalize"] else pooled

    def _of_tokens(self, answers: torch.Tensor) -> torch.Tensor:
        """One answer a row as it is; of one a position, those that belong to tokens and not to a prompt."""
        return answers[self._virtual :] if answers.ndim == 2 else answers

    def _clean(self, text: str) -> str:
        if self._encoder["collapse_whitespace"]:
            text = " ".join(text.split())
        return text.lower() if self._encoder["lowercase"] else text
