"""Linear heads on frozen features, by well-kept methods.

Every head is fitted on standardized features and folded into one affine map, so that serving computes
``features @ weight.T + bias`` and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmplex_tools.tasks.kinds import Targets

Array = NDArray[np.float32]
CLASSIFIER_C = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Inverse strengths of regularization that are tried, on standardized features."""
CHOOSING_LABELS = 5
"""Labels of a multi-label task that regularization is chosen by."""
RIDGE_ALPHAS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
MLP_INNER, MLP_ALPHA = 128, 1.0
"""Width of the inner layer, and strength of regularization."""
MLP_STOPPING_ROWS = 200
PROJECTION_STEPS = 300
PROJECTION_ROWS = 256
TEMPERATURE = 0.1
TEMPERATURE_OF_COSINES = 20.0
""".05 more of a cosine is e times the odds."""


@dataclass(frozen=True)
class Head:
    """An affine map of fp32 features: ``weight`` [outputs, hidden], ``bias`` [outputs]."""

    weight: Array
    bias: Array

    def apply(self, features: Array) -> Array:
        """[n, hidden] to [n, outputs]."""
        return features @ self.weight.T + self.bias

    @property
    def tensors(self) -> dict[str, Array]:
        """As head.safetensors holds them."""
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True)
class StepsHead(Head):
    """What tells a position's own steps; with ``scale``, by how much it is off where that is odd."""

    scale: float | None = None

    @property
    def tensors(self) -> dict[str, Array]:
        """As head.safetensors holds them."""
        scale = {} if self.scale is None else {"scale": np.array([self.scale], np.float32)}
        return super().tensors | scale


@dataclass(frozen=True)
class MlpHead:
    """One inner layer with ReLU."""

    hidden: Head
    output: Head

    def apply(self, features: Array) -> Array:
        """[n, hidden] to [n, outputs]."""
        return self.output.apply(np.maximum(self.hidden.apply(features), 0))

    @property
    def tensors(self) -> dict[str, Array]:
        """As head.safetensors holds them."""
        hidden = {f"hidden.{name}": tensor for name, tensor in self.hidden.tensors.items()}
        return hidden | self.output.tensors


@dataclass(frozen=True)
class PrototypeHead:
    """Cosines to vectors that stand for labels: the mean of each label's rows, or the rows themselves."""

    vectors: Array
    """[n, hidden], of unit length."""
    owners: NDArray[np.int64]
    """[n]: the label of each."""
    temperature: float = TEMPERATURE_OF_COSINES
    """By which cosines become logits."""

    def apply(self, features: Array) -> Array:
        """[n, hidden] to [n, labels]."""
        cosines = _unit(features) @ self.vectors.T
        labels = range(int(self.owners.max()) + 1)
        nearest: Array = np.stack([cosines[:, self.owners == label].max(1) for label in labels], 1)
        return nearest * np.float32(self.temperature)

    @property
    def tensors(self) -> dict[str, Array]:
        """As head.safetensors holds them."""
        temperature = np.array([self.temperature], np.float32)
        return {"vectors": self.vectors, "owners": self.owners.astype(np.float32), "temperature": temperature}


AnyHead = Head | MlpHead | PrototypeHead


def fit_mlp(features: Array, targets: Targets, *, seed: int) -> MlpHead:
    """An inner layer of `MLP_INNER` and a linear one, stopped when a tenth of the rows is told no better."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    assert targets.values is not None
    scaler, y = Scaler.fit(features), targets.values
    spread = max(float(y.std()), 1e-6) if targets.kind == "regression" else 1.0
    kind = MLPRegressor if targets.kind == "regression" else MLPClassifier
    model = kind((MLP_INNER,), alpha=MLP_ALPHA, early_stopping=len(y) >= MLP_STOPPING_ROWS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is regularized, and tested on rows that it never saw
        model.fit(scaler.apply(features), y[:, 0] / spread if targets.kind == "regression" else y)
    (inner, outer), (inner_bias, outer_bias) = model.coefs_, model.intercepts_
    weight, bias = outer.T * spread, outer_bias * spread
    if targets.kind == "classification" and targets.width == 2:
        weight, bias = two_logits(weight, bias)
    return MlpHead(scaler.fold(inner.T, inner_bias), Head(weight.astype(np.float32), bias.astype(np.float32)))


def fit_prototypes(features: Array, targets: Targets, *, every_row: bool) -> PrototypeHead:
    """From rows of known labels; ``every_row``: each stands for itself, else the mean of a label's rows for all."""
    assert targets.values is not None
    unit = _unit(features)
    if every_row:
        return PrototypeHead(unit, targets.values.astype(np.int64))
    means = np.stack([unit[targets.values == label].mean(0) for label in range(targets.width)])
    return PrototypeHead(_unit(means), np.arange(targets.width))


def _unit(rows: Array) -> Array:
    unit: Array = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit


@dataclass(frozen=True)
class Scaler:
    """Standardization of features, fitted on training rows: ``(x - mean) / scale``."""

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, features: Array) -> Scaler:
        """Mean and standard deviation per column; a constant column is left as it is."""
        scale = features.std(0)
        return cls(features.mean(0), np.where(scale > 1e-6, scale, 1).astype(np.float32))

    def apply(self, features: Array) -> Array:
        """Standardized features."""
        return ((features - self.mean) / self.scale).astype(np.float32)

    def fold(self, weight: NDArray[Any], bias: NDArray[Any]) -> Head:
        """The head on raw features that equals ``weight``, ``bias`` on standardized ones."""
        folded = weight / self.scale
        return Head(folded.astype(np.float32), (bias - folded @ self.mean).astype(np.float32))


def two_logits(weight: NDArray[Any], bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of a single score z [1 output], the logits -z/2 and z/2, which say the same of two labels."""
    return np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def fit_head(features: Array, targets: Targets, *, seed: int, dimensions: int = 128) -> Head:
    """The head of ``targets.kind`` on frozen ``features`` [n, hidden] (per token for token classification)."""
    assert targets.values is not None
    scaler = Scaler.fit(features)
    x, y = scaler.apply(features), targets.values
    if targets.kind == "regression":
        return _ridge(x, y, scaler)
    if targets.kind == "multi_label":
        return scaler.fold(*_multi_label(x, y, seed))
    if targets.kind == "embedding":
        return fit_projection(features, y, dimensions, seed)
    return scaler.fold(*_classifier(x, y, targets.width, seed))


def _logistic(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=300, tol=1e-3)


def _best_c(x: Array, y: NDArray[Any], seed: int, most_rows: int = 4000) -> float:
    """The strength of regularization that predicts a fifth of the training rows best by log-likelihood."""
    from sklearn.metrics import log_loss

    order = np.random.default_rng(seed).permutation(len(x))[:most_rows]
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    labels = np.unique(y[kept])
    held = held[np.isin(y[held], labels)]
    if len(labels) < 2 or len(held) == 0:
        return CLASSIFIER_C[len(CLASSIFIER_C) // 2]
    losses = []
    for c in CLASSIFIER_C:
        model = _logistic(c).fit(x[kept], y[kept])
        losses.append(log_loss(y[held], model.predict_proba(x[held]), labels=model.classes_))
    return CLASSIFIER_C[int(np.argmin(losses))]


def _classifier(x: Array, y: NDArray[Any], width: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    model = _logistic(_best_c(x, y, seed)).fit(x, y)
    return two_logits(model.coef_, model.intercept_) if width == 2 else (model.coef_, model.intercept_)


def _multi_label(x: Array, y: Array, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One logistic regression a label, all regularized as suits the most frequent labels (the median of theirs)."""
    varied = [label for label in range(y.shape[1]) if 0 < y[:, label].sum() < len(y)]
    frequent = sorted(varied, key=lambda label: -y[:, label].sum())[:CHOOSING_LABELS]
    chosen = sorted(_best_c(x, y[:, label], seed) for label in frequent)
    # A label that all rows have, or none, teaches nothing: its odds are those of n rows out of n + 1.
    weight, bias = np.zeros((y.shape[1], x.shape[1])), np.where(y.mean(0) > 0.5, 1.0, -1.0) * np.log(len(y))
    for label in varied:
        model = _logistic(chosen[len(chosen) // 2]).fit(x, y[:, label])
        weight[label], bias[label] = model.coef_[0], model.intercept_[0]
    return weight, bias


def fit_ridge(features: Array, values: Array) -> Head:
    """The linear map of ``features`` [n, hidden], of positions or channels, nearest to ``values`` [n, outputs]."""
    scaler = Scaler.fit(features)
    return _ridge(scaler.apply(features), values, scaler)


def _ridge(x: Array, y: Array, scaler: Scaler) -> Head:
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=RIDGE_ALPHAS).fit(x, y)
    return scaler.fold(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))


def fit_projection(features: Array, labels: NDArray[Any], dimensions: int, seed: int) -> Head:
    """A projection in which rows of one label lie together: supervised contrastive loss, Adam, class-balanced batches.

    It starts from the first principal directions, so that it is never worse than a mere reduction of dimensions.
    """
    scaler = Scaler(features.mean(0), np.full(features.shape[1], features.std(), np.float32))
    x, y = torch.from_numpy(scaler.apply(features)), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.svd(x[torch.randperm(len(x), generator=generator)[:4000]], full_matrices=False).Vh
    missing = max(dimensions - len(directions), 0)
    random = torch.randn(missing, x.shape[1], generator=generator) * x.shape[1] ** -0.5
    weight = torch.cat([directions[:dimensions], random]).clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([weight], lr=2e-3, weight_decay=1e-2)
    rows_by_label = [torch.nonzero(y == label).flatten() for label in torch.unique(y)]
    for _ in range(PROJECTION_STEPS):
        rows = balanced_rows(rows_by_label, PROJECTION_ROWS, generator)
        loss = contrastive_loss(x[rows] @ weight.T, y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return scaler.fold(weight.detach().numpy(), np.zeros(dimensions, np.float32))


def balanced_rows(rows_by_label: Sequence[torch.Tensor], size: int, generator: torch.Generator) -> torch.Tensor:
    """About ``size`` rows: 4 or more of each of some labels, so that every row has company."""
    most_labels = max(2, size // 8)
    chosen = torch.randperm(len(rows_by_label), generator=generator)[:most_labels].tolist()
    each = max(size // len(chosen), 4)
    picked = []
    for label in chosen:
        rows = rows_by_label[label]
        picked.append(rows[torch.randperm(len(rows), generator=generator)[:each]])
    return torch.cat(picked)


def contrastive_loss(vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) of [n, d] vectors, which are scaled to unit length here."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    similar = unit @ unit.T / TEMPERATURE
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similar = similar.masked_fill(itself, float("-inf"))
    log_share = similar - torch.logsumexp(similar, dim=1, keepdim=True)
    same = (labels[:, None] == labels[None, :]) & ~itself
    company = same.sum(1)
    alone = company == 0
    mean = torch.where(same, log_share, torch.zeros(())).sum(1) / company.clamp(min=1)
    return -mean[~alone].mean() if bool((~alone).any()) else log_share.new_zeros((), requires_grad=True)
