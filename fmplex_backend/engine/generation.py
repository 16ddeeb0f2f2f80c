"""A vFM's loaded state on the engine's side, made from its packed file apart from what serves."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from fmplex_backend.adapters.adapter import Adapter, make_adapter
from fmplex_backend.adapters.bank import Stamp
from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.heads.projections import Projection, Similarity, linear, mlp, prototypes, transformers_head
from fmplex_backend.heads.series import linear_forecast, native_forecast, stepwise
from fmplex_backend.repository.artifact import STEPWISE, Artifact
from fmplex_backend.repository.packed import head_width

TABLES = ("lora_A", "lora_B", "bias_delta", "bias", "magnitude", "out_scale", "in_scale", "prompt", "head")

Tables = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Generation:
    """Immutable; its adapter, if it has one, is in the engine's tiers under its stamp."""

    stamp: Stamp
    artifact: Artifact
    projection: Projection
    width: int
    """Outputs of its head."""
    virtual_tokens: int
    """Positions that its prompt takes before each row's tokens."""
    layout: int
    """The same for adapters that touch the same places, with the same rank classes."""
    n_bytes: int
    """Of adapter and head together."""

    @property
    def has_adapter(self) -> bool:
        """Whether its rows need a slot."""
        return self.artifact.adapter


def read_packed(path: str) -> tuple[Tables, Artifact]:
    """Tensors of a packed file by table and name, fp32 on the CPU, and its ``vfm.json``."""
    tables: Tables = {kind: {} for kind in TABLES}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, _, name = key.partition("/")
            tables[kind][name] = file.get_tensor(key).clone()  # a view would keep the whole file mapped
        return tables, Artifact.model_validate_json(file.metadata()["artifact"])


def read_adapter(path: str, backbone: Backbone, dtype: torch.dtype) -> Adapter:
    """The adapter of a packed file."""
    return make_adapter(read_packed(path)[0], backbone.model, dtype)


def prepare(
    stamp: Stamp, path: str, backbone: Backbone, dtype: torch.dtype, device: str
) -> tuple[Generation, Adapter | None]:
    """Read a generation and build its parts; touches nothing that serves. Raises `Refused`, OSError, MemoryError."""
    tables, artifact = read_packed(path)
    parameters = {name: tensor.to(device) for name, tensor in tables["head"].items()}
    if artifact.head == "transformers":
        projection: Projection = transformers_head(artifact, parameters, backbone.facts, backbone.model)
    elif artifact.head == "similarity":
        projection = Similarity()
    elif artifact.head == "native":
        projection = native_forecast(artifact, backbone)
    elif artifact.head == "prototypes":
        projection = prototypes(artifact, parameters)
    elif artifact.head == "mlp":
        projection = mlp(artifact, parameters)
    elif artifact.kind == "forecast":
        projection = linear_forecast(artifact, parameters)
    elif artifact.kind in STEPWISE:
        projection = stepwise(artifact, parameters)
    else:
        projection = linear(artifact, parameters)
    adapter = make_adapter(tables, backbone.model, dtype) if artifact.adapter else None
    n_bytes = sum(tensor.numel() * 4 for tensor in parameters.values()) + (adapter.n_bytes if adapter else 0)
    width = _width(artifact, parameters, backbone)
    virtual_tokens = adapter.virtual_tokens if adapter else 0
    layout = zlib.crc32(repr(sorted(adapter.parts)).encode()) if adapter else 0  # the same in every process
    return Generation(stamp, artifact, projection, width, virtual_tokens, layout, n_bytes), adapter


def _width(artifact: Artifact, parameters: dict[str, Tensor], backbone: Backbone) -> int:
    if artifact.labels is not None:
        return len(artifact.labels)
    if artifact.kind in STEPWISE:
        assert isinstance(backbone.facts.input, SeriesInput)
        return backbone.facts.input.context
    if (weight := parameters.get("weight")) is not None and artifact.head in ("linear", "mlp"):
        return len(weight)
    return head_width(artifact, backbone.facts) if artifact.head == "identity" else 1
