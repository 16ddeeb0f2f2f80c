"""Held-out quality against a baseline that ignores the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_tools.tasks.kinds import Targets

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """One figure, higher is better, beside what a guess without the text reaches."""

    metric: str
    value: float
    baseline_metric: str
    baseline: float


def score(
    targets: Targets,
    outputs: Array,
    train: Targets,
    *,
    threshold: float = 0.5,
    train_outputs: Array | None = None,
) -> Score:
    """Quality of ``outputs`` [rows, width] of held-out rows; ``train`` gives the baseline.

    classification and token classification: accuracy against the majority label; multi_label: micro-F1 against always
    giving the labels that most often lead to the best F1; regression: R² against the mean of the training rows (0 or
    less by definition); embedding: label of the nearest training row (``train_outputs``), against the majority label.
    """
    y, known = targets.values, train.values
    assert y is not None
    assert known is not None
    if targets.kind == "regression":
        return Score("r2", _r2(y, outputs), "mean of the training rows", _r2(y, np.full_like(y, known.mean())))
    if targets.kind == "multi_label":
        given = (1 / (1 + np.exp(-outputs))) >= threshold
        return Score("micro_f1", micro_f1(y, given), "most frequent labels", _frequent_labels(y, known))
    majority = float((y == np.bincount(known).argmax()).mean())
    if targets.kind == "embedding":
        assert train_outputs is not None
        value = nearest_neighbour(train_outputs, known, outputs, y)
        return Score("nearest_neighbour_accuracy", value, "majority label", majority)
    metric = "token_accuracy" if targets.kind == "token_classification" else "accuracy"
    return Score(metric, float((outputs.argmax(1) == y).mean()), "majority label", majority)


def mean_absolute_error(targets: NDArray[Any], outputs: Array) -> float:
    """Mean absolute error in the target's own unit."""
    return float(np.abs(targets - outputs).mean())


def micro_f1(truth: NDArray[Any], given: NDArray[Any]) -> float:
    """F1 over all (row, label) decisions; 0 where nothing is right."""
    right = float(np.logical_and(truth > 0, given > 0).sum())
    total = float((truth > 0).sum() + (given > 0).sum())
    return 2 * right / total if total else 0.0


def nearest_neighbour(index: Array, labels: NDArray[Any], queries: Array, truth: NDArray[Any]) -> float:
    """Share of ``queries`` whose nearest row of ``index`` (by cosine) has their label."""
    near = (_unit(queries) @ _unit(index).T).argmax(1)
    return float((labels[near] == truth).mean())


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _r2(truth: Array, outputs: Array) -> float:
    spread = float(((truth - truth.mean(0)) ** 2).sum())
    return 1 - float(((truth - outputs) ** 2).sum()) / spread if spread else 0.0


def _frequent_labels(truth: NDArray[Any], known: NDArray[Any]) -> float:
    """Best micro-F1 of giving every row the same most frequent labels, how many being chosen on training rows."""
    order = np.argsort(-known.mean(0))

    def guess(rows: int, count: int) -> NDArray[Any]:
        given = np.zeros((rows, known.shape[1]))
        given[:, order[:count]] = 1
        return given

    best = max(range(1, known.shape[1] + 1), key=lambda count: micro_f1(known, guess(len(known), count)))
    return micro_f1(truth, guess(len(truth), best))
