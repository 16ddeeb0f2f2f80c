"""From raw outputs to answers: the columns that each kind of vFM gives, by socket."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmplex_backend.messages import Column
from fmplex_backend.repository.artifact import Artifact

Columns = dict[str, Column]


def _classification(raw: Tensor, lengths: list[int], artifact: Artifact) -> Columns:
    labels = artifact.labels or ()
    best = raw.argmax(-1).tolist()
    return {
        "vector": raw.numpy(),
        "scores": raw.softmax(-1).numpy(),
        "text": [[labels[i]] for i in best],
    }


def _multi_label(raw: Tensor, lengths: list[int], artifact: Artifact) -> Columns:
    labels = artifact.labels or ()
    scores = raw.sigmoid()
    given = [row.nonzero().flatten().tolist() for row in scores >= artifact.threshold]
    return {"vector": raw.numpy(), "scores": scores.numpy(), "text": [[labels[i] for i in row] for row in given]}


def _regression(raw: Tensor, lengths: list[int], artifact: Artifact) -> Columns:
    return {"vector": raw.numpy()}


def _embedding(raw: Tensor, lengths: list[int], artifact: Artifact) -> Columns:
    if artifact.normalize:
        raw = torch.nn.functional.normalize(raw, dim=-1)
    if artifact.pooling == "none":
        return {"matrix": [raw[i, :n].numpy() for i, n in enumerate(lengths)]}
    return {"vector": raw.numpy()}


def _token_classification(raw: Tensor, lengths: list[int], artifact: Artifact) -> Columns:
    labels = artifact.labels or ()
    scores, best = raw.softmax(-1).max(-1)
    return {
        "matrix": [raw[i, :n].numpy() for i, n in enumerate(lengths)],
        "scores": [scores[i, :n].numpy() for i, n in enumerate(lengths)],
        "text": [[labels[j] for j in best[i, :n].tolist()] for i, n in enumerate(lengths)],
    }


_KINDS: dict[str, Callable[[Tensor, list[int], Artifact], Columns]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "embedding": _embedding,
    "token_classification": _token_classification,
}


def answers(raw: Tensor, lengths: list[int], artifact: Artifact) -> tuple[Columns, list[bool]]:
    """Columns of ``raw`` (fp32 on the CPU, [rows, outputs] or [rows, t, outputs]) for rows of ``lengths`` positions,
    and per row whether all that belongs to it is finite."""
    if raw.ndim == 3:
        finite = [bool(raw[i, :n].isfinite().all()) for i, n in enumerate(lengths)]
    else:
        finite = raw.isfinite().all(-1).tolist()
    return _KINDS[artifact.kind](raw, lengths, artifact), finite
