"""Making tasks from data: `create_task` for a new vFM, `train_task` for a new version of one.

Both run the same course: kind, split, features, head (and adapter), held-out quality, artifact, the server's own
check of it, golden rows, and one rename into the repository.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Artifact, HeadType, Quality
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks import publish
from fmplex_tools.tasks.artifact_writer import now, write_version
from fmplex_tools.tasks.backbone import Backbone, Encoded, check_fits, load_backbone, read_settings
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.evaluate import Score, mean_absolute_error, score
from fmplex_tools.tasks.heads import AnyHead, MlpHead, PrototypeHead, fit_head, fit_mlp, fit_prototypes
from fmplex_tools.tasks.kinds import Targets, encode
from fmplex_tools.tasks.making import TaskResult, bytes_of, check_new, publish_new, write_checked
from fmplex_tools.tasks.mixing import learned_mix
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.prepare import Prepared, prepare_data
from fmplex_tools.tasks.progress import Reporter
from fmplex_tools.tasks.signing import sign_version
from fmplex_tools.tasks.training import token_tags, train_lora

DEFAULT_DIMENSIONS = 128

Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Learned:
    head: AnyHead | None
    adapter: Any | None
    score: Score | None
    probe: Score | None
    error: float | None


@dataclass(frozen=True)
class _Side:
    """One side of the split, as numbers."""

    encoded: Encoded
    targets: Targets


def create_task(
    repository: Path,
    name: str,
    examples: Examples,
    options: TaskOptions | None = None,
    *,
    fm: str = "minilm",
    parameters: dict[str, str] | None = None,
    backbone: Backbone | None = None,
    reporter: Reporter | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Train a new vFM on ``examples`` and put it into ``repository`` on the lowest free port of ``fm``.

    ``parameters`` is its policy (``weight``, ``max_queue_size`` …), ``backbone`` one that is loaded already,
    ``sign_with`` the key that the version is signed with before anybody sees it. Raises `FMplexError` naming what is
    wrong, before anything is written where that can be told before.
    """
    started = time.monotonic()
    options = options or TaskOptions()
    parameters = dict(parameters or {})
    check_new(repository, name, parameters)
    settings = read_settings(repository, fm)
    prepared = prepare_data(examples, options)
    backbone = backbone or load_backbone(repository, fm)
    options = options.with_encoder(learned_mix(options.encoder, prepared.train.rows, options.mix))
    check_fits(backbone, options.encoder)
    artifact, learned = _learn(backbone, prepared, options, reporter or Reporter())
    shown = prepared.test if len(prepared.test) else prepared.train
    port, size = publish_new(
        repository,
        name,
        fm,
        artifact,
        lambda version: write_version(version, artifact, learned.head, learned.adapter),
        backbone=backbone,
        settings=settings,
        parameters=parameters,
        rows=shown.rows,
        pairs=shown.pairs,
        sign_with=sign_with,
    )
    return _result(name, 1, port, artifact, learned, prepared, size, started)


def train_task(
    repository: Path,
    name: str,
    examples: Examples,
    options: TaskOptions | None = None,
    *,
    backbone: Backbone | None = None,
    reporter: Reporter | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Train a new version of the vFM ``name``; the versions before it stay, to go back to.

    A new version answers with the same outputs: kind, labels and inputs must be those of the version it follows.
    """
    from fmplex_tools.tasks.manage import show_task  # manage knows nothing of training, so it imports without torch

    started = time.monotonic()
    info = show_task(repository, name)
    if info.artifact is None or info.fm is None:
        raise InvalidInput(f"{name!r} {info.problem or 'is a bundle; train one of its vFMs'}")
    options = options or TaskOptions(kind=info.artifact.kind, encoder=info.artifact.encoder)
    settings = read_settings(repository, info.fm)
    prepared = prepare_data(examples, options)
    _check_same_interface(name, info.artifact, prepared, options)
    backbone = backbone or load_backbone(repository, info.fm)
    check_fits(backbone, options.encoder)
    artifact, learned = _learn(backbone, prepared, options, reporter or Reporter())
    shown = prepared.test if len(prepared.test) else prepared.train
    with publish.staged(repository) as scratch:
        width = write_checked(
            scratch / "version",
            lambda version: write_version(version, artifact, learned.head, learned.adapter),
            artifact,
            backbone,
            settings.max_adapter_rank,
            shown.rows,
            shown.pairs,
        )
        if info.width is not None and width != info.width:
            raise InvalidInput(
                f"vFM {name!r} has {info.width} outputs, the new version {width}; pass --dimensions {info.width}"
            )
        if sign_with is not None:
            sign_version(scratch / "version", name, sign_with)
        size = bytes_of(scratch / "version")
        version = publish.publish_version(repository, name, scratch / "version")
    return _result(name, version, None, artifact, learned, prepared, size, started)


def _learn(
    backbone: Backbone, prepared: Prepared, options: TaskOptions, reporter: Reporter
) -> tuple[Artifact, _Learned]:
    pooling = options.pooling_for(prepared.kind)
    if prepared.train.labels is None:
        learned = _Learned(None, None, None, None, None)
    else:
        train = _side(backbone, prepared, prepared.train, options)
        test = _side(backbone, prepared, prepared.test, options)
        learned = _train(backbone, train, test, pooling, options, reporter)
    quality = None
    if learned.score is not None:
        quality = Quality(
            metric=learned.score.metric,
            value=round(learned.score.value, 4),
            baseline_metric=learned.score.baseline_metric,
            baseline=round(learned.score.baseline, 4),
            train_rows=len(prepared.train),
            test_rows=len(prepared.test),
            split=prepared.split.rule,
        )
    artifact = Artifact(
        kind=prepared.kind,
        backbone=backbone.ref,
        pooling=pooling,
        head=_head_type(learned.head),
        labels=None if prepared.kind == "embedding" else prepared.names,
        threshold=options.threshold,
        normalize=options.normalize and prepared.kind == "embedding",
        adapter=learned.adapter is not None,
        encoder=options.encoder,
        quality=quality,
        created=now(),
        source=prepared.train.source or None,
    )
    return artifact, learned


def _head_type(head: AnyHead | None) -> HeadType:
    if head is None:
        return "identity"
    if isinstance(head, MlpHead):
        return "mlp"
    return "prototypes" if isinstance(head, PrototypeHead) else "linear"


def _side(backbone: Backbone, prepared: Prepared, examples: Examples, options: TaskOptions) -> _Side:
    words = prepared.kind == "token_classification"
    encoded = backbone.encode(examples.rows, examples.pairs, options.encoder, words=words)
    return _Side(encoded, encode(prepared.kind, examples, prepared.names, options.separator))


def _train(
    backbone: Backbone, train: _Side, test: _Side, pooling: Pooling, options: TaskOptions, reporter: Reporter
) -> _Learned:
    dimensions = options.dimensions or DEFAULT_DIMENSIONS
    indexed = (
        train.targets.kind == "embedding"
    )  # held-out rows are looked up among the training rows: these in fp32 too
    with reporter.stage("features", len(train.encoded) + len(test.encoded)) as advance:
        known, flat = _features(backbone, train, pooling, None, advance, fast=not indexed)
        held, held_flat = _features(backbone, test, pooling, None, advance)
    with reporter.stage("head", 1) as advance:
        probe = fit_head(known, flat, seed=options.seed, dimensions=dimensions)
        advance(1)
    if options.head == "mlp":
        inner = fit_mlp(known, flat, seed=options.seed)
        frozen = _score(probe, held, held_flat, known, flat, options)
        reached = _score(inner, held, held_flat, known, flat, options)
        return _Learned(inner, None, reached, frozen, _error(inner, held, held_flat))
    if options.head != "linear":
        looked_up = fit_prototypes(known, flat, every_row=options.head == "nearest")
        reached = score(held_flat, looked_up.apply(held), flat)
        return _Learned(looked_up, None, reached, _score(probe, held, held_flat, known, flat, options), None)
    if indexed:
        frozen = score(held_flat, held, flat, train_outputs=known)
    else:
        frozen = _score(probe, held, held_flat, known, flat, options)
    if options.lora is None:
        reached = _score(probe, held, held_flat, known, flat, options)
        return _Learned(probe, None, reached, frozen, _error(probe, held, held_flat))
    with reporter.stage("adapter", options.lora.epochs * len(train.encoded)) as advance:
        trained = train_lora(
            backbone,
            train.encoded,
            train.targets,
            known,
            probe,
            pooling,
            options.lora,
            seed=options.seed,
            report=advance,
        )
    with reporter.stage("held-out rows", len(test.encoded) + (len(train.encoded) if indexed else 0)) as advance:
        held, _ = _features(backbone, test, pooling, trained.model, advance)
        if indexed:
            known, _ = _features(backbone, train, pooling, trained.model, advance)
    reached = _score(trained.head, held, held_flat, known, flat, options)
    return _Learned(trained.head, trained.model, reached, frozen, _error(trained.head, held, held_flat))


def _features(
    backbone: Backbone, side: _Side, pooling: Pooling, model: Any, advance: Any, *, fast: bool = False
) -> tuple[Array, Targets]:
    """Features and targets row by row; for token classification token by token, special tokens left out.

    Training counts every token of a word; so does token accuracy.
    """
    if side.targets.kind != "token_classification":
        return backbone.features(side.encoded, pooling, model=model, fast=fast, advance=advance), side.targets
    values = cast(NDArray[Any], side.targets.values)
    rows = backbone.token_features(side.encoded, model=model, fast=fast, advance=advance)
    tags = [token_tags(side.encoded, row, values[row]) for row in range(len(side.encoded))]
    kept = np.concatenate(tags) >= 0
    flat = Targets(side.targets.kind, side.targets.names, np.concatenate(tags)[kept])
    return np.concatenate(rows)[kept], flat


def _score(head: AnyHead, held: Array, targets: Targets, known: Array, train: Targets, options: TaskOptions) -> Score:
    index = head.apply(known) if targets.kind == "embedding" else None
    return score(targets, head.apply(held), train, threshold=options.threshold, train_outputs=index)


def _error(head: AnyHead, held: Array, targets: Targets) -> float | None:
    if targets.kind != "regression" or targets.values is None:
        return None
    return mean_absolute_error(targets.values, head.apply(held))


def _check_same_interface(name: str, old: Artifact, new: Prepared, options: TaskOptions) -> None:
    remedy = f"make a new vFM with `fmplex task create`, or remove {name!r} first"
    if new.kind != old.kind:
        raise InvalidInput(f"vFM {name!r} is of kind {old.kind!r}, the data makes {new.kind!r}; {remedy}")
    if old.labels is not None and new.names != old.labels:
        changed = sorted(set(new.names) ^ set(old.labels))
        raise InvalidInput(
            f"vFM {name!r} answers with labels {', '.join(old.labels)}; the data differs in {', '.join(changed)}; "
            f"{remedy}"
        )
    if options.encoder.tensors != old.encoder.tensors:
        raise InvalidInput(f"vFM {name!r} takes {' and '.join(old.encoder.tensors)}; {remedy}")


def _result(
    name: str,
    version: int,
    port: int | None,
    artifact: Artifact,
    learned: _Learned,
    prepared: Prepared,
    size: int,
    started: float,
) -> TaskResult:
    return TaskResult(
        name=name,
        version=version,
        port=port,
        artifact=artifact,
        probe=learned.probe,
        mean_absolute_error=learned.error,
        duplicates=prepared.split.duplicates,
        bytes_on_disk=size,
        seconds=time.monotonic() - started,
    )
