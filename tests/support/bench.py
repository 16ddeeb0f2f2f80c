"""A worker of the engine's own with vFMs by recipe, and what each of them should answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmplex_backend.encoders.text import EncodedRow, TextEncoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import BatchDone, LoadGeneration
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.packed import pack, read_version
from support.recipes import RECIPES, Recipe, write_version
from support.reference import Reference

TEXTS = ("good film", "a very good book, not a bad film", "no", "it was not very good, was it?")
PAIRS = ("bad", "the book was bad", "yes", "good")


@dataclass
class Bench:
    """A worker with vFMs loaded, and what each should answer."""

    worker: Worker
    encoder: TextEncoder
    folder: Path
    backbone: Path

    def load(self, number: int, name: str, recipe: Recipe) -> str | None:
        """Pack and load; the engine's refusal, if any."""
        version = self.folder / name / "1"
        if not version.exists():
            write_version(version, recipe, self.backbone, seed=number)
        content = read_version(version, version.parent, self.worker.backbone.facts, 64)
        pack(content, self.folder / f"{number}.safetensors")
        path = str(self.folder / f"{number}.safetensors")
        return self.worker.load(LoadGeneration(number, name, 1, path)).error

    def rows(self, name: str, indices: list[int]) -> list[EncodedRow]:
        spec = TextSpec.model_validate(RECIPES[name].encoder) if name in RECIPES else TextSpec()
        texts = [TEXTS[i][: 14 if name == "untruncated" else None] for i in indices]
        return self.encoder.encode_texts(spec, texts, [PAIRS[i] for i in indices] if spec.pair else None)

    def reference(self, name: str, index: int) -> np.ndarray:
        text = TEXTS[index][: 14 if name == "untruncated" else None]
        pairs = [PAIRS[index]] if name in RECIPES and RECIPES[name].encoder.get("pair") else None
        return Reference(self.folder / name / "1", self.backbone)([text], pairs)[0]


def by_row(done: BatchDone) -> dict[int, np.ndarray]:
    """Place in the batch → logits, values or embedding."""
    answers = {}
    for group in done.groups:
        if not group.columns:
            continue
        column = group.columns["vector" if "vector" in group.columns else "matrix"]
        answers |= {place: column[i] for i, place in enumerate(group.rows)}
    return answers
