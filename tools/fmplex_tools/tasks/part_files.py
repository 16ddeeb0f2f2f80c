"""A folder with the parts of a task, each saved by itself, as toolkits like FMTK (umassos/FMTK) have them in memory:

- ``decoder.safetensors``: the head. An MLP's state (``net.0.weight``, ``net.0.bias``, ``net.2.weight``,
  ``net.2.bias``; ReLU between them), or what scikit-learn calls ``coef_`` and ``intercept_``, of a standardized input
  with ``mean_`` and ``scale_``.
- ``encoder.safetensors``, perhaps: a linear map of a series' channels (``weight`` [new, old], ``bias`` [new]).
- ``adapter/``, perhaps: a PEFT checkpoint of task type FEATURE_EXTRACTION.

A name may have ``model.`` in front. Pickles are never opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.artifact import Artifact, Kind
from fmplex_backend.repository.modalities import EncoderSpec, SeriesSpec
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks.artifact_writer import now
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.heads import Head, MlpHead, two_logits
from fmplex_tools.tasks.tensor_files import read_safetensors

DECODER, ENCODER, ADAPTER = "decoder.safetensors", "encoder.safetensors", "adapter"
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
KINDS: tuple[Kind, ...] = ("classification", "multi_label", "regression")

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Parts:
    """Of a vFM."""

    artifact: Artifact
    head: Head | MlpHead
    adapter: Path | None


def is_part_folder(folder: Path) -> bool:
    """Whether there is a decoder of its own, if only a pickled one."""
    return (folder / DECODER).is_file() or _pickled(folder, "decoder") is not None


def encoder_of(folder: Path, base: EncoderSpec) -> EncoderSpec:
    """``base`` with the mix of channels that the folder brings. Raises `Refused`, `InvalidInput`."""
    if not (folder / ENCODER).is_file():
        if (pickled := _pickled(folder, "encoder")) is not None:
            raise Refused(f"{pickled}: pickled, so it is not read; save its weights as {ENCODER}")
        return base
    if not isinstance(base, SeriesSpec):
        raise InvalidInput(f"{folder / ENCODER}: mixes a series' channels; the backbone reads {base.modality}")
    found = _tensors(folder / ENCODER)
    if not {"weight"} <= found.keys() <= {"weight", "bias"} or found["weight"].ndim != 2:
        raise Refused(f"{folder / ENCODER}: holds {_shapes(found)}; served is a linear map, weight [new, old] and bias")
    mix = {name: tensor.tolist() for name, tensor in found.items()}
    channels = found["weight"].shape[1]
    return SeriesSpec.model_validate(base.model_dump() | {"channels": channels, "mix": mix})


def read_parts(
    folder: Path,
    backbone: Backbone,
    encoder: EncoderSpec,
    *,
    labels: tuple[str, ...] | None,
    kind: Kind | None,
    pooling: Pooling | None,
) -> Parts:
    """What the vFM is made of. ``kind`` is classification unless told, ``pooling`` the mean, as in FMTK.

    Raises `Refused` for what cannot be served, `InvalidInput` for options that do not fit.
    """
    if not (folder / DECODER).is_file():
        raise Refused(
            f"{_pickled(folder, 'decoder')}: pickled, so it is not read; where you trust it, save its numbers as "
            f"{DECODER}: an MLP's state_dict, or coef_ and intercept_"
        )
    kind = kind or "classification"
    if kind not in KINDS:
        raise InvalidInput(f"--kind {kind}: a decoder of one vector a row is {', '.join(KINDS)}")
    head = _head(folder / DECODER, kind)
    outputs = len((head.output if isinstance(head, MlpHead) else head).weight)
    if labels is None and kind != "regression":
        raise InvalidInput(f"{folder}: pass --labels A,B,…: names of the decoder's {outputs} outputs, in order")
    adapter = folder / ADAPTER
    artifact = Artifact(
        kind=kind,
        backbone=backbone.ref,
        pooling=pooling or "mean",
        head="mlp" if isinstance(head, MlpHead) else "linear",
        labels=labels or tuple(f"value{place}" if outputs > 1 else "value" for place in range(outputs)),
        adapter=adapter.is_dir(),
        encoder=encoder,
        created=now(),
        source=f"imported parts {folder.name}",
    )
    return Parts(artifact, head, adapter if adapter.is_dir() else None)


def _head(path: Path, kind: Kind) -> Head | MlpHead:
    found = _tensors(path)
    if found.keys() == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}:
        hidden, output = (Head(found[f"net.{layer}.weight"], found[f"net.{layer}.bias"]) for layer in (0, 2))
        return MlpHead(hidden, _two(output, kind))
    if not {"coef_", "intercept_"} <= found.keys() <= {"coef_", "intercept_", "mean_", "scale_"}:
        raise Refused(
            f"{path}: holds {_shapes(found)}; served are an MLP (net.0, net.2: weight, bias) and a linear model "
            "(coef_, intercept_, perhaps mean_ and scale_), not forests, support vectors or neighbours"
        )
    weight = np.atleast_2d(found["coef_"])
    bias = np.broadcast_to(found["intercept_"], len(weight)).astype(np.float32)
    if "scale_" in found:
        weight = weight / found["scale_"]
    if "mean_" in found:
        bias = bias - weight @ found["mean_"]
    return _two(Head(weight.astype(np.float32), bias.astype(np.float32)), kind)


def _two(head: Head, kind: Kind) -> Head:
    """Of a classification, one output as two."""
    return Head(*two_logits(head.weight, head.bias)) if kind == "classification" and len(head.weight) == 1 else head


def _tensors(path: Path) -> Tensors:
    found = read_safetensors(path)
    return {name.removeprefix("model."): np.asarray(tensor, np.float32) for name, tensor in found.items()}


def _shapes(tensors: Tensors) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "nothing"


def _pickled(folder: Path, part: str) -> Path | None:
    return next((path for ending in PICKLES if (path := folder / f"{part}{ending}").is_file()), None)
