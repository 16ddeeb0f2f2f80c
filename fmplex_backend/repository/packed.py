"""A vFM's version read once, checked whole, and packed into one private file that engines load from.

Packing has two reasons. What was checked is what is loaded, however the vFM's folder changes meanwhile; and an engine
that starts anew gets every live generation back without another look at folders that may be gone.

The file is safetensors, all fp32; the header carries ``vfm.json``. Tensors, as `peft_checkpoint.AdapterWeights` defines
them:

=======================  ==============================================
``lora_A/<layer>``       [rank, in]
``lora_B/<layer>``       [out, rank], scaled
``bias_delta/<layer>``   [out]
``bias/<module>``        [size]
``magnitude/<layer>``    [out], of layers that have lora_A and lora_B
``out_scale/<layer>``    [out]
``in_scale/<layer>``     [in]
``prompt/embeddings``    [virtual tokens, hidden]
``head/<parameter>``     by the head's own names
=======================  ==============================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import save_file

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import AudioInput, BackboneFacts, ImageInput, ImageTextInput, SeriesInput
from fmplex_backend.errors import Refused
from fmplex_backend.repository.artifact import ADAPTER_DIR, ARTIFACT_FILE, HEAD_FILE, Artifact
from fmplex_backend.repository.config import explain
from fmplex_backend.repository.modalities import (
    AudioSpec,
    EncoderSpec,
    ImageSpec,
    ImageTextSpec,
    SeriesSpec,
    TextSpec,
)
from fmplex_backend.repository.peft_checkpoint import AdapterWeights, read_checkpoint
from fmplex_backend.repository.poolings import width_of
from fmplex_backend.repository.safe_files import read_json, read_tensors


@dataclass(frozen=True)
class VersionContent:
    """Everything a version directory says, checked against the backbone."""

    artifact: Artifact
    """``vfm.json``; with a prompt, ``encoder.max_length`` is set to what the prompt leaves of the backbone's limit."""
    adapter: AdapterWeights | None
    head: dict[str, Array]
    """By the names that `Artifact.head` says; of ``transformers``, by transformers' own."""
    width: int
    """Outputs of the head: labels, targets, quantiles, the embedding's dimensions; of what answers by step, the most
    steps."""


def read_artifact(version_dir: Path, root: Path) -> Artifact:
    """``vfm.json`` alone. Raises `Refused`."""
    try:
        return Artifact.model_validate(read_json(version_dir / ARTIFACT_FILE, root))
    except ValidationError as error:
        raise Refused(f"{ARTIFACT_FILE}: {explain(error, Artifact, 'key')}") from None


def read_version(version_dir: Path, root: Path, facts: BackboneFacts, max_rank: int) -> VersionContent:
    """Read and check one version of the vFM in ``root``. Raises `Refused`; reads nothing outside ``root``."""
    artifact = read_artifact(version_dir, root)
    if artifact.backbone.fingerprint != facts.fingerprint:
        raise Refused(
            f"trained on backbone {artifact.backbone.name!r} ({artifact.backbone.fingerprint[:19]}…), but the physical "
            f"FM runs {facts.spec!r} ({facts.fingerprint[:19]}…); train it again with `fmplex task train`"
        )
    check_encoder(artifact.encoder, facts)
    adapter = read_checkpoint(version_dir / ADAPTER_DIR, root, facts, max_rank) if artifact.adapter else None
    if adapter is not None and adapter.prompt is not None:
        artifact = _with_prompt(artifact, adapter, facts)
    if artifact.head == "transformers" and adapter is not None:
        return VersionContent(artifact, adapter, adapter.head, len(artifact.labels or ("value",)))
    if adapter is not None and adapter.head:
        raise Refused(f"adapter/ brings a head of its own ({min(adapter.head)!r}), so 'head' must be 'transformers'")
    if artifact.head == "identity":
        return VersionContent(artifact, adapter, {}, head_width(artifact, facts))
    if artifact.head == "similarity":
        return VersionContent(artifact, adapter, {}, 1)
    if artifact.head == "native":
        return VersionContent(artifact, adapter, {}, _check_native(artifact, facts))
    head = read_tensors(version_dir / HEAD_FILE, root)
    if artifact.head == "prototypes":
        return VersionContent(artifact, adapter, head, _check_prototypes(head, artifact, facts))
    if artifact.by_channel:
        return VersionContent(artifact, adapter, head, _check_by_channel(head, artifact, facts))
    if artifact.head == "mlp":
        return VersionContent(artifact, adapter, head, _check_mlp(head, artifact, facts))
    return VersionContent(artifact, adapter, head, _check_linear(head, artifact, head_width(artifact, facts)))


def head_width(artifact: Artifact, facts: BackboneFacts) -> int:
    """Numbers that its head reads of a row, or of a position."""
    channels = artifact.encoder.seen if isinstance(artifact.encoder, SeriesSpec) else None
    return width_of(artifact.pooling, facts.hidden_size, channels)


def check_encoder(encoder: EncoderSpec, facts: BackboneFacts) -> None:
    """Raise `Refused` where the backbone does not take what ``encoder`` makes."""
    own = facts.input
    if encoder.modality != own.modality:
        raise Refused(f"its encoder reads {encoder.modality}; backbone {facts.spec!r} takes {own.modality}")
    if isinstance(encoder, ImageSpec) and isinstance(own, ImageInput):
        _check_image(encoder, own, facts.max_length)
    elif isinstance(encoder, AudioSpec) and isinstance(own, AudioInput):
        if encoder.seconds is not None and encoder.seconds > own.seconds:
            raise Refused(f"encoder.seconds {encoder.seconds:g} exceeds the backbone's window of {own.seconds:g} s")
    elif isinstance(encoder, SeriesSpec) and isinstance(own, SeriesInput):
        if encoder.max_length is not None and encoder.max_length > own.context:
            raise Refused(f"encoder.max_length {encoder.max_length} exceeds the backbone's {own.context} steps")
    elif isinstance(encoder, ImageTextSpec) and isinstance(own, ImageTextInput):
        if own.both and (encoder.image is None or encoder.text is None):
            raise Refused(f"backbone {facts.spec!r} takes an image and a text together")
        if encoder.image is not None:
            _check_image(encoder.image, own.image, facts.max_length)
        if encoder.text is not None:
            _check_text(encoder.text, own.text_length)
    elif isinstance(encoder, TextSpec):
        _check_text(encoder, facts.max_length)


def _check_image(encoder: ImageSpec, own: ImageInput, most: int) -> None:
    if encoder.size is None:
        return
    if not own.any_size and encoder.size != own.size:
        raise Refused(f"encoder.size {encoder.size}: the backbone sees images of {own.size} alone")
    if encoder.size % own.patch:
        raise Refused(f"encoder.size {encoder.size} is no multiple of the backbone's patches of {own.patch}")
    if (positions := own.positions(encoder.size)) > most:
        raise Refused(f"encoder.size {encoder.size} makes {positions} positions, the backbone takes {most}")


def _check_text(encoder: TextSpec, most: int) -> None:
    if encoder.max_length is not None and encoder.max_length > most:
        raise Refused(f"encoder.max_length {encoder.max_length} exceeds the backbone's {most} tokens")


def _with_prompt(artifact: Artifact, adapter: AdapterWeights, facts: BackboneFacts) -> Artifact:
    """``artifact`` with room for the prompt. Raises `Refused` where text and prompt are too long, or do not fit."""
    if not isinstance(artifact.encoder, TextSpec):
        raise Refused(f"adapter/ is a prompt, which goes before tokens; the encoder reads {artifact.encoder.modality}")
    own_head = adapter.task_type != "FEATURE_EXTRACTION"
    if own_head != (artifact.head == "transformers"):
        # PEFT keeps type ids with a task class's own head and drops them without, so the two must not be mixed up.
        right = "'transformers'" if own_head else "'linear' or 'identity'"
        raise Refused(
            f"adapter/ is a prompt of task_type {adapter.task_type!r}, so 'head' must be {right}, not {artifact.head!r}"
        )
    room = facts.max_length - adapter.virtual_tokens
    limit = artifact.encoder.max_length
    if limit is not None and limit > room:
        raise Refused(
            f"encoder.max_length {limit} and the prompt's {adapter.virtual_tokens} virtual tokens exceed the "
            f"backbone's {facts.max_length} tokens; at most {room} are left for the text"
        )
    encoder = artifact.encoder.model_copy(update={"max_length": limit or room})
    return artifact.model_copy(update={"encoder": encoder})


def _check_mlp(head: dict[str, Array], artifact: Artifact, facts: BackboneFacts) -> int:
    wanted, reads = {"hidden.weight", "hidden.bias", "weight", "bias"}, head_width(artifact, facts)
    if head.keys() != wanted:
        raise Refused(f"{HEAD_FILE}: holds {sorted(head)}; an mlp is {sorted(wanted)}")
    hidden, bias = head["hidden.weight"], head["hidden.bias"]
    if hidden.ndim != 2 or hidden.shape[1] != reads or bias.shape != hidden.shape[:1]:
        raise Refused(
            f"{HEAD_FILE}: hidden.weight has shape {list(hidden.shape)} and hidden.bias {list(bias.shape)}; with "
            f"pooling {artifact.pooling!r} and this backbone they are [inner, {reads}] and [inner]"
        )
    return _check_linear({name: head[name] for name in ("weight", "bias")}, artifact, len(hidden))


def _check_linear(head: dict[str, Array], artifact: Artifact, reads: int) -> int:
    if "weight" not in head or not head.keys() <= {"weight", "bias"}:
        raise Refused(f"{HEAD_FILE}: holds {sorted(head)}; a linear head is 'weight' and, if it has one, 'bias'")
    weight = head["weight"]
    if weight.ndim != 2 or weight.shape[1] != reads:
        raise Refused(
            f"{HEAD_FILE}: weight has shape {list(weight.shape)}; with pooling {artifact.pooling!r} and this backbone "
            f"it is [outputs, {reads}]"
        )
    width = int(weight.shape[0])
    if width < 1:
        raise Refused(f"{HEAD_FILE}: weight has shape {list(weight.shape)}; it has at least one output")
    if artifact.labels is not None and len(artifact.labels) != width:
        raise Refused(
            f"{HEAD_FILE}: weight has {width} outputs, but {ARTIFACT_FILE} names {len(artifact.labels)} labels"
        )
    if "bias" in head and head["bias"].shape != (width,):
        raise Refused(f"{HEAD_FILE}: bias has shape {list(head['bias'].shape)}; it is [{width}]")
    return width


def _check_by_channel(head: dict[str, Array], artifact: Artifact, facts: BackboneFacts) -> int:
    """Of a forecast by a head of its own, or of what answers by step."""
    own, reads = facts.input, width_of(artifact.pooling, facts.hidden_size)
    assert isinstance(own, SeriesInput)
    if artifact.kind == "forecast":
        width = len(artifact.labels or ())
        shapes = {"weight": ((artifact.horizon or 0) * width, reads), "bias": ((artifact.horizon or 0) * width,)}
    elif not own.patch:
        raise Refused(f"backbone {facts.spec!r} does not give each step to one position, so it cannot answer by step")
    else:
        width = own.context
        shapes = {"weight": (own.patch, reads * artifact.sequences), "bias": (own.patch,)}
        if artifact.kind == "anomaly":
            shapes["scale"] = (1,)
    if head.keys() != shapes.keys():
        raise Refused(f"{HEAD_FILE}: holds {sorted(head)}; of this kind it is {sorted(shapes)}")
    if wrong := [name for name, shape in shapes.items() if head[name].shape != shape]:
        given, wanted = list(head[wrong[0]].shape), list(shapes[wrong[0]])
        raise Refused(f"{HEAD_FILE}: {wrong[0]} has shape {given}; with this backbone and {ARTIFACT_FILE} {wanted}")
    if "scale" in head and not head["scale"][0] > 0:
        raise Refused(f"{HEAD_FILE}: scale is {head['scale'].tolist()}; it is one number above 0")
    return width


def _check_native(artifact: Artifact, facts: BackboneFacts) -> int:
    own = facts.input
    if not isinstance(own, SeriesInput) or not own.horizon:
        raise Refused(f"backbone {facts.spec!r} does not forecast by itself, so 'head' cannot be 'native'")
    if artifact.horizon is not None and artifact.horizon > own.horizon:
        raise Refused(f"horizon {artifact.horizon} exceeds the backbone's {own.horizon} steps")
    labels = artifact.labels or ()
    if unknown := [label for label in labels if float(label) not in own.quantiles]:
        raise Refused(f"quantile {unknown[0]} is none of the backbone's, {', '.join(f'{q:g}' for q in own.quantiles)}")
    return len(labels)


def _check_prototypes(head: dict[str, Array], artifact: Artifact, facts: BackboneFacts) -> int:
    labels, reads = len(artifact.labels or ()), head_width(artifact, facts)
    if head.keys() != {"vectors", "owners", "temperature"}:
        raise Refused(f"{HEAD_FILE}: holds {sorted(head)}; prototypes are 'vectors', 'owners' and 'temperature'")
    vectors, owners, temperature = head["vectors"], head["owners"], head["temperature"]
    if vectors.ndim != 2 or vectors.shape[1] != reads or not len(vectors):
        raise Refused(f"{HEAD_FILE}: vectors has shape {list(vectors.shape)}; it is [n, {reads}]")
    if owners.shape != (len(vectors),) or set(owners.tolist()) != set(range(labels)):
        raise Refused(f"{HEAD_FILE}: owners are {len(vectors)} numbers of labels, each of 0 to {labels - 1} among them")
    if temperature.shape != (1,) or not temperature[0] > 0:
        raise Refused(f"{HEAD_FILE}: temperature is {temperature.tolist()}; it is one number above 0")
    return labels


def pack(content: VersionContent, path: Path) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    tensors = {f"head/{name}": array for name, array in content.head.items()}
    if (adapter := content.adapter) is not None:
        tables = {
            "lora_A": adapter.a,
            "lora_B": adapter.b,
            "bias_delta": adapter.bias_delta,
            "bias": adapter.bias,
            "magnitude": adapter.magnitude,
            "out_scale": adapter.out_scale,
            "in_scale": adapter.in_scale,
            "prompt": {} if adapter.prompt is None else {"embeddings": adapter.prompt},
        }
        tensors |= {f"{kind}/{name}": array for kind, table in tables.items() for name, array in table.items()}
    partial = path.with_suffix(".partial")
    contiguous = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
    save_file(contiguous, partial, metadata={"artifact": content.artifact.model_dump_json()})
    os.replace(partial, path)
