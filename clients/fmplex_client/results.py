"""Typed answers, one per text, made from the tensors of a response."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fmplex_client.errors import ServerError
from fmplex_client.tasks import kind_of, members_of

Array: TypeAlias = npt.NDArray[Any]
Info: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Classification:
    """One label out of several."""

    label: str
    score: float
    """Probability of ``label``."""
    probabilities: Array
    """[labels], fp32, in the order of the task's labels."""
    logits: Array | None = None
    """[labels], fp32; None where the task does not map them."""
    info: Info | None = None
    """Provenance: vfm, version, generation, backbone, batch_rows, batch_vfms, queue_us, compute_us; None where the
    task does not map ``info``. The same for every kind."""


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """Any number of labels, none included."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    """Probability of each of ``labels``."""
    probabilities: Array
    """[labels of the task], fp32."""
    logits: Array | None = None
    info: Info | None = None


@dataclass(frozen=True, eq=False)
class Regression:
    """One number per target."""

    values: Array
    """[targets], fp32."""
    info: Info | None = None

    @property
    def value(self) -> float:
        """The number of a task with one target. Raises ValueError where there are several."""
        if len(self.values) != 1:
            raise ValueError(f"the task has {len(self.values)} targets; use .values")
        return float(self.values[0])


@dataclass(frozen=True, eq=False)
class Embedding:
    """A vector, or one vector per token."""

    vector: Array
    """[width] or [tokens, width], fp32."""
    info: Info | None = None


@dataclass(frozen=True, eq=False)
class Forecast:
    """What comes next in a series."""

    values: Array
    """[channels, steps, quantiles], fp32, in the units of the series."""
    quantiles: tuple[float, ...] = ()
    """Between 0 and 1, ascending; none where the task does not map them."""
    info: Info | None = None

    @property
    def median(self) -> Array:
        """[channels, steps]: of the quantile nearest to a half. Raises ValueError where the task tells no quantiles."""
        if not self.quantiles:
            raise ValueError("the task tells no quantiles; use .values")
        middle = min(range(len(self.quantiles)), key=lambda place: abs(self.quantiles[place] - 0.5))
        return self.values[..., middle]


@dataclass(frozen=True, eq=False)
class Imputation:
    """A series without gaps."""

    values: Array
    """[channels, steps], fp32: what was asked where it has a value, what it should be elsewhere."""
    info: Info | None = None


@dataclass(frozen=True, eq=False)
class Anomaly:
    """How odd a series is; above 1 is beyond nearly all that training saw."""

    score: float
    """The greatest of its steps'."""
    scores: Array | None = None
    """[channels, steps], fp32, 0 where the series has no value; None where the task does not map them."""
    info: Info | None = None


@dataclass(frozen=True)
class Token:
    """A piece of the text with its label; a span is several of them."""

    label: str
    score: float
    """Probability of ``label``; of a span, the mean over its tokens."""
    start: int | None = None
    """Offset of the first character; None where the task does not map ``info``, which carries the offsets."""
    end: int | None = None
    """Offset after the last character."""


@dataclass(frozen=True, eq=False)
class TokenClassification:
    """A label per token."""

    tokens: tuple[Token, ...]
    """In the text's order; tokens that stand for no character (``[CLS]``) are left out."""
    logits: Array | None = None
    """[tokens of the row, labels], fp32, special tokens included."""
    info: Info | None = None

    @property
    def spans(self) -> tuple[Token, ...]:
        """Neighbouring tokens of one entity as one, ``O`` left out; ``B-X`` opens a new ``X``, ``I-X`` goes on."""
        return tuple(_spans(self.tokens))


@dataclass(frozen=True, eq=False)
class Tensors:
    """The plain tensors of one row, for an ensemble whose output names are none of FMplex's."""

    tensors: Mapping[str, Array]
    info: Info | None = None


Result: TypeAlias = (
    Classification
    | MultiLabel
    | Regression
    | Embedding
    | TokenClassification
    | Forecast
    | Imputation
    | Anomaly
    | Tensors
)
Answer: TypeAlias = Result | dict[str, Result]
"""What ``predict`` gives per text; a bundle's is a dict, member → result."""


def parse(tensors: Mapping[str, Array], rows: int) -> list[Answer]:
    """One answer per row of a response; ``tensors`` are [rows, …] by output name. Raises `ServerError`."""
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or len(tensor) != rows:
            raise ServerError(f"output {name!r} has shape {list(tensor.shape)} for {rows} rows")
    if kind_of(tensors) == "tensors" and (members := members_of(tensors)):
        per_member = {
            member: _parse_one({name: tensors[full] for name, full in names.items()}, rows)
            for member, names in members.items()
        }
        return [{member: results[row] for member, results in per_member.items()} for row in range(rows)]
    return list(_parse_one(tensors, rows))


def _parse_one(tensors: Mapping[str, Array], rows: int) -> list[Result]:
    parser = _PARSERS.get(kind_of(tensors), _tensors)
    return [parser({name: tensor[row] for name, tensor in tensors.items()}) for row in range(rows)]


def _classification(row: Mapping[str, Array]) -> Result:
    label = _texts(row["label"])[0]
    logits = row.get("logits")
    probabilities = row.get("probabilities")
    if probabilities is None:
        if logits is None:
            return Classification(label, float("nan"), np.empty(0, np.float32), None, _info(row))
        shifted = np.exp(logits - logits.max())
        probabilities = shifted / shifted.sum()
    return Classification(label, float(probabilities.max()), probabilities, logits, _info(row))


def _multi_label(row: Mapping[str, Array]) -> Result:
    labels = tuple(text for text in _texts(row["labels"]) if text)  # rows of one batch are padded with ""
    logits = row.get("logits")
    probabilities = row.get("probabilities")
    if probabilities is None:
        probabilities = np.empty(0, np.float32) if logits is None else 1 / (1 + np.exp(-logits))
    if not len(probabilities):
        return MultiLabel(labels, (float("nan"),) * len(labels), probabilities, logits, _info(row))
    if len(labels) > len(probabilities):
        raise ServerError(f"{len(labels)} labels for {len(probabilities)} probabilities")
    # The labels given are those over one threshold, in the task's own order: the most probable ones, by position.
    given = np.sort(np.argsort(-probabilities, kind="stable")[: len(labels)])
    return MultiLabel(labels, tuple(float(probabilities[i]) for i in given), probabilities, logits, _info(row))


def _regression(row: Mapping[str, Array]) -> Result:
    return Regression(row["values"], _info(row))


def _embedding(row: Mapping[str, Array]) -> Result:
    return Embedding(row["embedding"], _info(row))


def _token_classification(row: Mapping[str, Array]) -> Result:
    info = _info(row)
    labels = _texts(row["token_labels"])
    scores = row.get("token_scores")
    offsets = None if info is None else info.get("offsets")
    count = next((i for i in range(len(labels), 0, -1) if labels[i - 1]), 0)  # the rest is padding to the longest row
    if offsets is not None:
        if len(offsets) > len(labels):
            raise ServerError(f"{len(offsets)} offsets for {len(labels)} tokens")
        count = len(offsets)
    tokens = []
    for i in range(count):
        start, end = (None, None) if offsets is None else (int(offsets[i][0]), int(offsets[i][1]))
        if labels[i] and (start is None or start != end):
            tokens.append(Token(labels[i], float("nan") if scores is None else float(scores[i]), start, end))
    logits = row.get("logits")
    return TokenClassification(tuple(tokens), None if logits is None else logits[:count], info)


def _forecast(row: Mapping[str, Array]) -> Result:
    told = _texts(row["quantiles"]) if "quantiles" in row else []
    return Forecast(row["forecast"], tuple(float(text) for text in told), _info(row))


def _imputation(row: Mapping[str, Array]) -> Result:
    return Imputation(row["filled"], _info(row))


def _anomaly(row: Mapping[str, Array]) -> Result:
    return Anomaly(float(row["anomaly"][0]), row.get("anomaly_scores"), _info(row))


def _tensors(row: Mapping[str, Array]) -> Result:
    return Tensors({name: tensor for name, tensor in row.items() if name != "info"}, _info(row))


_PARSERS: dict[str, Callable[[Mapping[str, Array]], Result]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "embedding": _embedding,
    "token_classification": _token_classification,
    "forecast": _forecast,
    "imputation": _imputation,
    "anomaly": _anomaly,
}


def _spans(tokens: Sequence[Token]) -> Iterator[Token]:
    group: list[Token] = []
    for token in tokens:
        goes_on = bool(group) and not token.label.startswith("B-") and _entity(token) == _entity(group[-1])
        if group and not goes_on:
            yield _merge(group)
            group = []
        if token.label != "O":
            group.append(token)
    if group:
        yield _merge(group)


def _entity(token: Token) -> str:
    return token.label[2:] if token.label[:2] in ("B-", "I-") else token.label


def _merge(group: Sequence[Token]) -> Token:
    score = sum(token.score for token in group) / len(group)
    return Token(_entity(group[0]), score, group[0].start, group[-1].end)


def _info(row: Mapping[str, Array]) -> Info | None:
    if "info" not in row:
        return None
    text = _texts(row["info"])[0]
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ServerError(f"output 'info' is no JSON: {error}: {text[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise ServerError(f"output 'info' is no JSON object: {text[:80]!r}")
    return parsed


def _texts(values: Array) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.reshape(-1)]
