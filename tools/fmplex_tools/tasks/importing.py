"""``fmplex task import``: an existing PEFT checkpoint becomes a vFM, its files unchanged; so does a folder of
sentence-transformers' that stands on the same backbone (`fmplex_tools.tasks.sentence_folder`), and one with an encoder,
an adapter and a decoder as parts (`fmplex_tools.tasks.part_files`).

By the checkpoint's ``task_type``:

==================  ====================================================================================
SEQ_CLS             kind classification (regression with one label), transformers' own head, saved by PEFT
TOKEN_CLS           kind token_classification, transformers' own head, saved by PEFT
FEATURE_EXTRACTION  kind embedding: the adapted backbone's pooled vector itself
==================  ====================================================================================

Its ``peft_type`` may be any that `fmplex_backend.repository.peft_checkpoint` reads: LoRA (rsLoRA, DoRA), IA3, prompt
tuning and p-tuning.
Whatever the server would refuse is refused here, in the same words, before anything is published.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.repository.artifact import ADAPTER_DIR, Artifact, Kind
from fmplex_backend.repository.modalities import SPECS, EncoderSpec, TextSpec
from fmplex_backend.repository.peft_checkpoint import CONFIG, WEIGHTS
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks import part_files
from fmplex_tools.tasks.artifact_writer import now, write_artifact, write_version
from fmplex_tools.tasks.backbone import Backbone, check_fits, load_backbone, read_settings
from fmplex_tools.tasks.making import TaskResult, Write, check_new, publish_new
from fmplex_tools.tasks.sentence_folder import encoder_of, is_sentence_folder, read_parts

TaskType = Literal["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"]
TASK_TYPES: tuple[TaskType, ...] = ("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION")
PROBLEM_KINDS: dict[str | None, Kind] = {
    None: "classification",
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
"""transformers' ``problem_type`` → kind."""


@dataclass(frozen=True)
class ImportOptions:
    """How an imported checkpoint is to be served."""

    labels: tuple[str, ...] | None = None
    """Names of its outputs in order; None takes ``id2label`` of a ``config.json`` in the folder."""
    kind: Kind | None = None
    """None is what ``task_type`` and ``problem_type`` say."""
    pooling: Pooling | None = None
    """Embeddings only; None is ``mean``."""
    normalize: bool = False
    """Embeddings only: scale to unit length."""
    encoder: EncoderSpec | None = None
    """None is what the backbone reads, by default rules."""


def import_task(
    repository: Path,
    name: str,
    checkpoint: Path,
    options: ImportOptions | None = None,
    *,
    fm: str = "minilm",
    parameters: dict[str, str] | None = None,
    backbone: Backbone | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Publish the PEFT checkpoint, sentence-transformers model or parts in ``checkpoint`` as the new vFM ``name``.

    Raises `NotFound` where the folder or a file of it is missing, `InvalidInput` for options that do not fit it,
    `Refused` where the server would not serve it.
    """
    started = time.monotonic()
    options = options or ImportOptions()
    parameters = dict(parameters or {})
    check_new(repository, name, parameters)
    settings = read_settings(repository, fm)
    sentences, parts = is_sentence_folder(checkpoint), part_files.is_part_folder(checkpoint)
    task_type = None if sentences or parts else read_task_type(checkpoint)
    backbone = backbone or load_backbone(repository, fm)
    encoder = options.encoder or (encoder_of(checkpoint) if sentences else SPECS[backbone.facts.modality]())
    if parts:
        encoder = part_files.encoder_of(checkpoint, encoder)
    check_fits(backbone, encoder)
    options = replace(options, encoder=encoder)
    if parts:
        artifact, write = _parts(checkpoint, options, backbone)
    elif task_type is None:
        artifact, write = _sentence_model(checkpoint, options, backbone)
    else:
        artifact, write = _peft_checkpoint(checkpoint, task_type, options, backbone)
    port, size = publish_new(
        repository,
        name,
        fm,
        artifact,
        write,
        backbone=backbone,
        settings=settings,
        parameters=parameters,
        sign_with=sign_with,
    )
    return TaskResult(name, 1, port, artifact, None, None, 0, size, time.monotonic() - started)


def read_task_type(checkpoint: Path) -> TaskType:
    """``task_type`` of a checkpoint. Raises `NotFound` for a folder that holds none, `Refused` for other types."""
    if not checkpoint.is_dir():
        raise NotFound(f"checkpoint {checkpoint}: no such folder")
    if not (checkpoint / CONFIG).is_file():
        raise NotFound(f"checkpoint {checkpoint}: has no {CONFIG}; give the folder that PEFT's save_pretrained wrote")
    if not (checkpoint / WEIGHTS).is_file():
        raise Refused(f"checkpoint {checkpoint}: has no {WEIGHTS}; save it with safe_serialization=True (no pickle)")
    found = _json(checkpoint / CONFIG).get("task_type")
    if found not in TASK_TYPES:
        raise Refused(f"checkpoint {checkpoint}: task_type is {found!r}; served are {', '.join(TASK_TYPES)}")
    return TASK_TYPES[TASK_TYPES.index(found)]


def base_model_of(checkpoint: Path) -> str | None:
    """What a PEFT checkpoint says that it was trained on, a hub name or a folder; None where nothing is said."""
    if is_sentence_folder(checkpoint):
        return None  # its weights were compared
    if part_files.is_part_folder(checkpoint):
        checkpoint = checkpoint / part_files.ADAPTER
        if not checkpoint.is_dir():
            return None
    return _json(checkpoint / CONFIG).get("base_model_name_or_path") or None


def _peft_checkpoint(
    checkpoint: Path, task_type: TaskType, options: ImportOptions, backbone: Backbone
) -> tuple[Artifact, Write]:
    artifact = _artifact(checkpoint, task_type, options, backbone)

    def write(version: Path) -> None:
        _copy(checkpoint, version / ADAPTER_DIR)
        write_artifact(version, artifact)

    return artifact, write


def _sentence_model(checkpoint: Path, options: ImportOptions, backbone: Backbone) -> tuple[Artifact, Write]:
    if options.kind is not None or options.pooling is not None or options.normalize:
        raise InvalidInput("--kind, --pooling and --normalize: a sentence-transformers folder tells them itself")
    if not isinstance(options.encoder, TextSpec):
        raise InvalidInput(f"checkpoint {checkpoint.name}: sentence-transformers reads texts, so its encoder is one")
    parts = read_parts(checkpoint, backbone, options.encoder, options.labels)
    return parts.artifact, lambda version: write_version(version, parts.artifact, parts.head)


def _parts(folder: Path, options: ImportOptions, backbone: Backbone) -> tuple[Artifact, Write]:
    if options.normalize:
        raise InvalidInput("--normalize is for embeddings; a folder with a decoder is none")
    assert options.encoder is not None
    parts = part_files.read_parts(
        folder, backbone, options.encoder, labels=options.labels, kind=options.kind, pooling=options.pooling
    )
    if parts.adapter is not None and (found := read_task_type(parts.adapter)) != "FEATURE_EXTRACTION":
        raise Refused(f"{parts.adapter}: task_type is {found}, which brings a head of its own; here it is the decoder")

    def write(version: Path) -> None:
        write_version(version, parts.artifact, parts.head)
        if parts.adapter is not None:
            _copy(parts.adapter, version / ADAPTER_DIR)

    return parts.artifact, write


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise Refused(f"{path}: not a JSON object")
    return value


def _artifact(checkpoint: Path, task_type: TaskType, options: ImportOptions, backbone: Backbone) -> Artifact:
    kind = _kind(checkpoint, task_type, options)
    common: dict[str, Any] = {
        "kind": kind,
        "backbone": backbone.ref,
        "adapter": True,
        "encoder": options.encoder,
        "created": now(),
        "source": f"imported PEFT checkpoint {checkpoint.name}",
    }
    if kind == "embedding":
        if options.labels is not None:
            raise InvalidInput("--labels: an embedding has no labels; leave it out")
        return Artifact(head="identity", pooling=options.pooling or "mean", normalize=options.normalize, **common)
    if options.pooling is not None or options.normalize:
        raise InvalidInput(f"--pooling and --normalize are for embeddings; task_type {task_type} brings its own head")
    labels = options.labels or _labels(checkpoint, kind)
    pooling: Pooling = "none" if kind == "token_classification" else "cls"
    return Artifact(head="transformers", pooling=pooling, labels=labels, **common)


def _kind(checkpoint: Path, task_type: TaskType, options: ImportOptions) -> Kind:
    allowed: dict[TaskType, tuple[Kind, ...]] = {
        "SEQ_CLS": ("classification", "multi_label", "regression"),
        "TOKEN_CLS": ("token_classification",),
        "FEATURE_EXTRACTION": ("embedding",),
    }
    if options.kind is not None:
        if options.kind not in allowed[task_type]:
            raise InvalidInput(f"--kind {options.kind}: task_type {task_type} gives {', '.join(allowed[task_type])}")
        return options.kind
    if task_type != "SEQ_CLS" or not (checkpoint / "config.json").is_file():
        return allowed[task_type][0]
    problem = _json(checkpoint / "config.json").get("problem_type")
    if problem not in PROBLEM_KINDS:
        raise Refused(f"{checkpoint / 'config.json'}: problem_type {problem!r} is not known; pass --kind")
    return PROBLEM_KINDS[problem]


def _labels(checkpoint: Path, kind: Kind) -> tuple[str, ...]:
    if kind == "regression":
        return ("value",)
    path = checkpoint / "config.json"
    names = _json(path).get("id2label") if path.is_file() else None
    if not isinstance(names, dict) or not names:
        raise InvalidInput(f"checkpoint {checkpoint.name}: pass --labels A,B,…: there is no config.json with id2label")
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except ValueError:
        raise Refused(f"{path}: id2label has a key that is no number") from None


def _copy(checkpoint: Path, target: Path) -> None:
    """The checkpoint's own two files, byte by byte; what else lies beside them is not the server's business."""
    target.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(checkpoint / name, target / name)
