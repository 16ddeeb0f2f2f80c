"""vFMs of every modality on small random backbones, served by a worker and computed by plain transformers and PEFT."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.encoders.choice import make_encoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import BatchDone, LoadGeneration, RunBatch, Tokens
from fmplex_backend.repository.artifact import LABELLED, STEPWISE, Artifact, BackboneRef
from fmplex_backend.repository.packed import head_width, pack, read_version

Tensors = Mapping[str, NDArray[Any]]
"""A request's, of one row."""
Hidden = Callable[[Any, Tensors, Mapping[str, Any]], torch.Tensor]
"""What a plain model makes of a row by the rules of an encoder: [positions of its own, hidden], no sequences mixed."""


@dataclass(frozen=True)
class Task:
    """One vFM with random weights."""

    kind: str = "classification"
    outputs: int = 3
    pooling: str = "mean"
    lora: Mapping[str, Any] | None = None
    head: str = "linear"
    encoder: Mapping[str, Any] = field(default_factory=dict)
    normalize: bool = False
    horizon: int | None = None
    labels: tuple[str, ...] | None = None


def write_task(folder: Path, task: Task, backbone: Backbone, plain: Any, seed: int) -> Artifact:
    """Its version directory; ``plain`` is the model that PEFT puts the adapter on, or of its task class."""
    folder.mkdir(parents=True)
    artifact = Artifact.model_validate(
        {
            "kind": task.kind,
            "backbone": BackboneRef(name="test", fingerprint=backbone.facts.fingerprint),
            "pooling": task.pooling,
            "head": task.head,
            "labels": task.labels or ([f"L{i}" for i in range(task.outputs)] if task.kind in LABELLED else None),
            "horizon": task.horizon,
            "adapter": task.lora is not None,
            "encoder": {"modality": backbone.facts.modality, **task.encoder},
            "normalize": task.normalize,
        }
    )
    (folder / "vfm.json").write_text(artifact.model_dump_json())
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        if task.lora is not None:
            model = get_peft_model(copy.deepcopy(plain), LoraConfig(**task.lora))
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn_like(parameter)
                    parameter.data = parameter * (1 + 0.3 * noise) if "magnitude" in name else parameter + 0.1 * noise
            model.save_pretrained(folder / "adapter")
        if task.head == "linear":
            outputs, width = _head_shape(task, artifact, backbone)
            head = {"weight": 0.1 * torch.randn(outputs, width), "bias": torch.randn(outputs)}
            if task.kind == "anomaly":
                head["scale"] = torch.tensor([0.7])
            save_file(head, folder / "head.safetensors")
    return artifact


def _head_shape(task: Task, artifact: Artifact, backbone: Backbone) -> tuple[int, int]:
    width = head_width(artifact, backbone.facts)
    if task.kind == "forecast":
        return (task.horizon or 0) * len(task.labels or ()), width
    if task.kind in STEPWISE:
        assert isinstance(backbone.facts.input, SeriesInput)
        return backbone.facts.input.patch, width * artifact.sequences
    return task.outputs, width


def with_adapter(plain: Any, version: Path) -> Any:
    """``plain`` with the adapter that a version has, if any, as its owner would use it."""
    if not (version / "adapter").is_dir():
        return plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(plain), version / "adapter").eval()


def headed(version: Path, artifact: Artifact, pooled: torch.Tensor) -> NDArray[np.float32]:
    """Its answer to a row whose pooled vector, or table of vectors, is ``pooled``."""
    if artifact.head == "linear":
        head = load_file(version / "head.safetensors")
        pooled = torch.nn.functional.linear(pooled, head["weight"], head["bias"])
    if artifact.normalize:
        pooled = torch.nn.functional.normalize(pooled, dim=-1)
    answer: NDArray[np.float32] = pooled.detach().numpy()
    return answer


class Served:
    """A worker with several tasks, as an engine has them."""

    def __init__(self, folder: Path, spec: Path, slots: int = 8) -> None:
        self.folder = folder
        self.backbone = load_backbone(str(spec), "fp32", "cpu")
        self.worker = Worker(self.backbone, "cpu", slots)
        self.encoder = make_encoder(self.backbone.facts)
        self.artifacts: dict[int, Artifact] = {}

    def put(self, number: int, task: Task, plain: Any) -> Path:
        """Make and load a task; its version directory."""
        version = self.folder / str(number)
        write_task(version, task, self.backbone, plain, seed=number)
        self.load(number, version)
        return version

    def load(self, number: int, version: Path) -> None:
        """Load a version that is there."""
        content = read_version(version, version, self.backbone.facts, 64)
        packed = self.folder / f"{number}.safetensors"
        pack(content, packed)
        loaded = self.worker.load(LoadGeneration(number, f"vfm{number}", 1, str(packed)))
        assert loaded.error is None, loaded.error
        self.artifacts[number] = content.artifact

    def encode(self, number: int, row: Tensors) -> Tokens:
        """A row as the host sends it."""
        [encoded] = self.encoder.encode(self.artifacts[number].encoder, row)
        return encoded.tokens

    def answers(self, asked: Sequence[tuple[int, Tensors]]) -> list[NDArray[np.float32]]:
        """Numbers of each (task, row), all in one batch."""
        done = self.worker.run(
            RunBatch(1, [number for number, _ in asked], [self.encode(number, row) for number, row in asked])
        )
        return answers_of(done, len(asked))


def answers_of(done: BatchDone, rows: int) -> list[NDArray[np.float32]]:
    """Vector, matrix or volume of each row; every row has one."""
    found: dict[int, NDArray[np.float32]] = {}
    for group in done.groups:
        assert not group.errors, group.errors
        column = next(group.columns[name] for name in ("volume", "matrix", "vector") if name in group.columns)
        found |= zip(group.rows, column, strict=True)
    return [np.asarray(found[row]) for row in range(rows)]
