"""Lower precision: as close to fp32 as the plain model of that precision is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.recipes import RECIPES, write_version

from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import LoadGeneration, RunBatch
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.packed import pack, read_version

TEXTS = ["good film", "a very good book, not a bad film", "no", "it was not very good, was it?"]
NAMES = ("bare_two", "lora_all_16", "lora_biases", "imported_sequence")


def answers(backbone: Path, folder: Path, dtype: str) -> dict[str, np.ndarray]:
    """Logits of every vFM of ``NAMES``, all in one mixed batch."""
    worker = Worker(load_backbone(str(backbone), dtype, "cpu"), "cpu", 8)
    for number, name in enumerate(NAMES):
        content = read_version(folder / name / "1", folder / name, worker.backbone.facts, 64)
        pack(content, folder / f"{number}.safetensors")
        loaded = worker.load(LoadGeneration(number, name, 1, str(folder / f"{number}.safetensors")))
        assert loaded.error is None
    rows = TextEncoder(worker.backbone.facts).encode_texts(TextSpec(), TEXTS * len(NAMES), None)
    owners = [number for number in range(len(NAMES)) for _ in TEXTS]
    done = worker.run(RunBatch(1, owners, [row.tokens for row in rows]))
    return {NAMES[group.generation]: group.columns["vector"] for group in done.groups}


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.15), ("fp16", 0.02)])
def test_lower_precision(tiny_backbone: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    for seed, name in enumerate(NAMES):
        write_version(tmp_path / name / "1", RECIPES[name], tiny_backbone, seed=seed)
    exact = answers(tiny_backbone, tmp_path, "fp32")
    rough = answers(tiny_backbone, tmp_path, dtype)
    for name in NAMES:
        assert rough[name].dtype == np.float32
        difference = np.abs(rough[name] - exact[name]).max()
        assert 0 < difference < tolerance, name
