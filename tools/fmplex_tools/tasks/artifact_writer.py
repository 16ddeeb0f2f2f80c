"""Writing a version directory: ``vfm.json``, ``adapter/`` as PEFT writes it, ``head.safetensors``, ``golden.json``."""

from __future__ import annotations

import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fmplex_backend.repository.artifact import ADAPTER_DIR, ARTIFACT_FILE, HEAD_FILE, Artifact
from fmplex_backend.repository.golden import GOLDEN_FILE, Golden
from fmplex_tools.tasks.heads import AnyHead


def write_version(folder: Path, artifact: Artifact, head: AnyHead | None, adapter: Any | None = None) -> None:
    """Write a version into the new folder ``folder``; ``adapter`` is a PEFT model, saved by its own method."""
    folder.mkdir(parents=True)
    if adapter is not None:
        save_adapter(adapter, folder / ADAPTER_DIR)
    if head is not None:
        write_head(folder / HEAD_FILE, head)
    write_artifact(folder, artifact)


def save_adapter(adapter: Any, folder: Path) -> None:
    """PEFT's own ``save_pretrained``; nothing is asked of a hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Embeddings are never trained here; "auto" would ask the hub for the base model's vocabulary.
        adapter.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def write_head(path: Path, head: AnyHead) -> None:
    """Its tensors, fp32."""
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in head.tensors.items()}, path)


def write_artifact(folder: Path, artifact: Artifact) -> None:
    """``vfm.json``, indented for people."""
    (folder / ARTIFACT_FILE).write_text(artifact.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_golden(folder: Path, golden: Golden) -> None:
    """``golden.json``: its numbers are read back exactly."""
    (folder / GOLDEN_FILE).write_text(golden.model_dump_json(exclude_none=True) + "\n", encoding="utf-8")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
