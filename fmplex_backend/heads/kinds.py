"""From raw outputs to answers: the columns that each kind of vFM gives, by socket.

The rows of several vFMs of one kind are answered together; a `Part` says which rows, and how many of the columns, are
whose. Columns beyond a part's own are void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.arrays import Array
from fmplex_backend.messages import Column
from fmplex_backend.repository.artifact import Artifact

Columns = dict[str, Column]


@dataclass(frozen=True)
class Part:
    """The rows ``start`` to ``stop`` of the raw outputs, of one vFM."""

    artifact: Artifact
    start: int
    stop: int
    width: int
    """Its outputs."""


def _masked(raw: Tensor, parts: Sequence[Part]) -> Tensor:
    """``raw`` with -inf in void columns."""
    if all(part.width == raw.shape[-1] for part in parts):
        return raw
    widths = torch.tensor([part.width for part in parts for _ in range(part.start, part.stop)])
    void = torch.arange(raw.shape[-1]) >= widths.view(-1, *([1] * (raw.ndim - 1)))
    return raw.masked_fill(void, -torch.inf)


def _classification(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    raw = _masked(raw, parts)
    vector, scores, best = raw.numpy(), raw.softmax(-1).numpy(), raw.argmax(-1).tolist()
    for part in parts:
        labels, rows = part.artifact.labels or (), slice(part.start, part.stop)
        yield {
            "vector": vector[rows, : part.width],
            "scores": scores[rows, : part.width],
            "text": [[labels[i]] for i in best[rows]],
        }


def _multi_label(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    vector, scores = raw.numpy(), raw.sigmoid().numpy()
    for part in parts:
        labels, own = part.artifact.labels or (), scores[part.start : part.stop, : part.width]
        given = [row.nonzero()[0].tolist() for row in own >= part.artifact.threshold]
        yield {
            "vector": vector[part.start : part.stop, : part.width],
            "scores": own,
            "text": [[labels[i] for i in row] for row in given],
        }


def _regression(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    vector = raw.numpy()
    for part in parts:
        yield {"vector": vector[part.start : part.stop, : part.width]}


def _embedding(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    for part in parts:
        own = raw[part.start : part.stop, ..., : part.width]
        if part.artifact.normalize:
            own = torch.nn.functional.normalize(own, dim=-1)
        if part.artifact.pooling == "none":
            yield {"matrix": [own[i, :n].numpy() for i, n in enumerate(lengths[part.start : part.stop])]}
        else:
            yield {"vector": own.numpy()}


def _token_classification(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    raw = _masked(raw, parts)
    matrix, scores = raw.numpy(), raw.softmax(-1)
    top, best = scores.max(-1)
    for part in parts:
        labels = part.artifact.labels or ()
        rows = [(i, lengths[i]) for i in range(part.start, part.stop)]
        yield {
            "matrix": [matrix[i, :n, : part.width] for i, n in rows],
            "scores": [top[i, :n].numpy() for i, n in rows],
            "text": [[labels[j] for j in best[i, :n].tolist()] for i, n in rows],
        }


def _forecast(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    volume = raw.numpy()
    for part in parts:
        rows = range(part.start, part.stop)
        yield {
            "volume": [volume[row, : lengths[row], :, : part.width] for row in rows],
            "text": [list(part.artifact.labels or ()) for _ in rows],
        }


def _imputation(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    matrix = raw.numpy()
    for part in parts:
        yield {"matrix": [matrix[row, : lengths[row]] for row in range(part.start, part.stop)]}


def _anomaly(raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> Iterator[Columns]:
    for columns in _imputation(raw, lengths, parts):
        yield columns | {"vector": np.array([[scores.max()] for scores in columns["matrix"]], np.float32)}


_KINDS: dict[str, Callable[[Tensor, list[int], Sequence[Part]], Iterator[Columns]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "embedding": _embedding,
    "token_classification": _token_classification,
    "forecast": _forecast,
    "imputation": _imputation,
    "anomaly": _anomaly,
}


def answers(kind: str, raw: Tensor, lengths: list[int], parts: Sequence[Part]) -> list[tuple[Columns, list[bool]]]:
    """For each of ``parts``, all of one ``kind``, its columns, and per row whether all that belongs to it is finite.

    ``raw``: fp32 on the CPU, [rows, width], or [rows, t, width] for rows of ``lengths`` positions, or of a forecast
    [rows, channels, steps, width] for rows of ``lengths`` channels, or by step [rows, channels, steps] of those.
    """
    finite = raw.isfinite().numpy()
    columns = _KINDS[kind](raw, lengths, parts)
    return [(own, _finite(finite, lengths, part)) for own, part in zip(columns, parts, strict=True)]


def _finite(finite: Array, lengths: list[int], part: Part) -> list[bool]:
    own = finite[part.start : part.stop, ..., : part.width]
    if own.ndim > 2:
        return [bool(own[i, :n].all()) for i, n in enumerate(lengths[part.start : part.stop])]
    rows: list[bool] = own.all(-1).tolist()
    return rows
