"""vFMs that answer by step: the missing steps of a series filled, or how odd each step is.

A linear head is learnt by ridge regression on what the frozen backbone makes of windows of the data: of steps that are
hidden from it (imputation), or of every step from those around it (anomaly).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Artifact, Quality
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.tasks.artifact_writer import now
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.evaluate import Score
from fmplex_tools.tasks.heads import Array, Head, StepsHead, fit_ridge
from fmplex_tools.tasks.making import NewTask, TaskResult
from fmplex_tools.tasks.progress import Reporter
from fmplex_tools.tasks.windows import Series, cut_windows, hide

WINDOW = 256
"""Steps of the pieces that are learnt from."""
HIDDEN, LONGEST_GAP = 0.2, 8
"""Part of the steps that is hidden, and the longest run of them."""
SPIKE = 1.0
"""Standard deviations by which one step of each held-out channel is moved, to see whether it is found."""
USUAL = 0.99
"""Part of all steps whose score is below 1."""
HELD = 0.2
MOST_WINDOWS = 512
GOLDEN_STEPS = 64
MOST_POSITIONS = 50_000
"""That a head is learnt from."""


def train_stepwise(
    repository: Path,
    name: str,
    examples: Examples,
    *,
    fm: str,
    kind: Literal["imputation", "anomaly"],
    window: int = WINDOW,
    backwards: bool = True,
    encoder: SeriesSpec | None = None,
    parameters: Mapping[str, str] | None = None,
    backbone: Backbone | None = None,
    sign_with: Ed25519PrivateKey | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> TaskResult:
    """Put a vFM of ``kind`` into ``repository``, learnt from four fifths of the windows and tested on the others.

    An imputation is told by R² at hidden steps, beside that of a straight line through the gap; an anomaly by how
    often a step that was moved by one standard deviation scores higher than one that was not (AUC), beside the distance
    from the mean of its two neighbours. Raises `FMplexError`.
    """
    made = NewTask.begin(repository, name, fm, parameters, backbone, sign_with)
    own = made.backbone.facts.input
    if not isinstance(own, SeriesInput) or not own.patch:
        raise InvalidInput(f"physical FM {fm!r}: its backbone {made.backbone.facts.spec!r} does not read step by step")
    encoder = encoder or SeriesSpec()
    encoder = encoder.model_copy(update={"observed": encoder.observed or kind == "imputation", "backwards": backwards})
    chance = np.random.default_rng(seed)
    windows = cut_windows(examples.rows, min(window, encoder.max_length or own.context))
    if len(windows) < 2:
        raise InvalidInput(f"the data makes {len(windows)} window of {window} steps; it takes at least 2")
    order = chance.permutation(len(windows))[:MOST_WINDOWS]
    held = max(1, round(HELD * len(order)))
    test, train = ([windows[place] for place in places] for places in (order[:held], order[held:]))
    task = (_Imputation if kind == "imputation" else _Anomaly)(
        made.backbone, encoder, own.patch, chance, reporter or Reporter()
    )
    head = task.fit(train)
    reached = task.score(head, test)
    quality = Quality(
        metric=reached.metric,
        value=reached.value,
        baseline_metric=reached.baseline_metric,
        baseline=reached.baseline,
        train_rows=len(train),
        test_rows=len(test),
        split=f"{HELD:.0%} of the windows of {window} steps, seed {seed}",
    )
    artifact = Artifact(
        kind=kind,
        backbone=made.backbone.ref,
        pooling="none",
        encoder=encoder,
        quality=quality,
        created=now(),
        source=examples.source,
    )
    return made.publish(artifact, head, [piece[:, -GOLDEN_STEPS:] for piece in test])


class _Stepwise:
    """What both kinds have in common: what the backbone makes of windows, position by position."""

    ahead = 0

    def __init__(
        self,
        backbone: Backbone,
        encoder: SeriesSpec,
        patch: int,
        chance: np.random.Generator,
        reporter: Reporter,
    ) -> None:
        self._backbone, self._encoder, self._patch, self._chance = backbone, encoder, patch, chance
        self._reporter = reporter

    def _read(self, windows: Sequence[Series]) -> tuple[Array, Array]:
        """Of every channel of ``windows``, NaN where there is no value: vectors [channels, positions, width], and mean
        and deviation [channels, 2]; positions are the last ones of the context."""
        encoded = self._backbone.encode(windows, None, self._encoder)
        found: dict[int, tuple[Array, Array]] = {}
        with self._reporter.stage("windows", len(windows)) as advance:
            for rows, features in self._backbone.run(encoded, advance=advance):
                for row, hidden, levels in self._by_row(rows, features):
                    found[row] = self._both_ways(hidden), levels
        kept = self._count(windows)
        ordered = [found[row] for row in range(len(windows))]
        vectors = np.concatenate([x[:, -kept:] for x, _ in ordered])
        levels = np.concatenate([known[: len(x)] for x, known in ordered])
        return vectors, levels

    @staticmethod
    def _by_row(rows: Sequence[int], features: Features) -> Iterator[tuple[int, Array, Array]]:
        assert features.levels is not None
        counts = features.channels()
        hidden = torch.split(features.hidden[:, features.special :].float().cpu(), counts)
        levels = torch.split(features.levels.cpu(), counts)
        for row, own, known in zip(rows, hidden, levels, strict=True):
            yield row, own.numpy(), known.numpy()

    def _both_ways(self, hidden: Array) -> Array:
        """[sequences, positions, hidden] as [channels, positions, width], each position with what tells it."""
        before = np.zeros_like(hidden)
        before[:, self.ahead :] = hidden[:, : hidden.shape[1] - self.ahead]
        if not self._encoder.backwards:
            return before
        forwards, backwards = np.split(before, 2)
        return np.concatenate([forwards, backwards[:, ::-1]], -1)

    def _count(self, windows: Sequence[Series]) -> int:
        """Positions that the longest of them takes."""
        return -(-max(piece.shape[1] for piece in windows) // self._patch)

    def _positions(self, windows: Sequence[Series]) -> Array:
        """Their values by position, [channels, positions, patch], NaN where there is none."""
        longest = self._count(windows) * self._patch
        padded = [np.pad(p, ((0, 0), (longest - p.shape[1], 0)), constant_values=np.nan) for p in windows]
        whole: Array = np.concatenate(padded).astype(np.float32)
        return whole.reshape(len(whole), -1, self._patch)

    def _ridge(self, x: Array, y: Array) -> Head:
        """From positions all of whose steps are known."""
        if not len(y):
            raise InvalidInput("no position of the data has all of its values; fill its gaps")
        if len(y) > MOST_POSITIONS:
            some = self._chance.choice(len(y), MOST_POSITIONS, replace=False)
            x, y = x[some], y[some]
        return fit_ridge(x, y)


class _Imputation(_Stepwise):
    def fit(self, windows: Sequence[Series]) -> StepsHead:
        x, truth, hidden, levels = self._hidden(windows)
        scaled = _in_deviations(truth, levels)
        wanted = hidden.any(-1) & np.isfinite(scaled).all(-1)
        head = self._ridge(x[wanted], scaled[wanted])
        return StepsHead(head.weight, head.bias)

    def score(self, head: Head, windows: Sequence[Series]) -> Score:
        x, truth, hidden, levels = self._hidden(windows)
        scaled = _in_deviations(truth, levels)
        lines = _straight(np.where(hidden, np.nan, scaled).reshape(len(truth), -1)).reshape(truth.shape)
        counted = hidden & np.isfinite(truth)
        ours, line = (_r2(guess[counted], scaled[counted]) for guess in (head.apply(x), lines))
        return Score("r2", ours, "straight line", line)

    def _hidden(self, windows: Sequence[Series]) -> tuple[Array, Array, NDArray[np.bool_], Array]:
        """Vectors of windows some of whose steps are hidden; by position their values, which are hidden, and levels."""
        masks = [hide(np.isfinite(piece), HIDDEN, LONGEST_GAP, self._chance) for piece in windows]
        x, levels = self._read([np.where(mask, np.nan, p) for mask, p in zip(masks, windows, strict=True)])
        marked = self._positions([np.where(mask, 1.0, np.nan) for mask in masks])
        return x, self._positions(windows), np.isfinite(marked), levels


class _Anomaly(_Stepwise):
    ahead = 1

    def fit(self, windows: Sequence[Series]) -> StepsHead:
        x, scaled = self._scaled(windows)
        known = np.isfinite(scaled).all(-1)
        head = self._ridge(x[known], scaled[known])
        off = np.abs(head.apply(x[known]) - scaled[known])
        return StepsHead(head.weight, head.bias, max(float(np.quantile(off, USUAL)), 1e-6))

    def score(self, head: Head, windows: Sequence[Series]) -> Score:
        moved, places = zip(*[self._moved(piece) for piece in windows], strict=True)
        x, scaled = self._scaled(moved)
        marked = np.isfinite(self._positions([np.where(mask, 1.0, np.nan) for mask in places])).reshape(len(x), -1)
        values = scaled.reshape(len(x), -1)
        off = np.abs(head.apply(x) - scaled).reshape(len(x), -1)
        neighbours = np.pad(values, ((0, 0), (1, 1)), mode="edge")
        plain = np.abs(values - (neighbours[:, :-2] + neighbours[:, 2:]) / 2)
        ours, other = (_auc(scores, marked) for scores in (off, plain))
        return Score("spike_auc", ours, "distance from neighbours", other)

    def _scaled(self, windows: Sequence[Series]) -> tuple[Array, Array]:
        x, levels = self._read(windows)
        return x, _in_deviations(self._positions(windows), levels)

    def _moved(self, piece: Series) -> tuple[Series, NDArray[np.bool_]]:
        """With one step of each channel moved, and which."""
        moved, marked = piece.copy(), np.zeros(piece.shape, bool)
        for channel, values in enumerate(piece):
            known = np.isfinite(values).nonzero()[0]
            place = self._chance.choice(known[1:-1] if len(known) > 2 else known)
            moved[channel, place] += SPIKE * self._chance.choice((-1, 1)) * values[known].std()
            marked[channel, place] = True
        return moved, marked


def _in_deviations(values: Array, levels: Array) -> Array:
    """``values`` [channels, positions, patch] in standard deviations from their channel's mean."""
    scaled: Array = (values - levels[:, None, :1]) / np.maximum(levels[:, None, 1:], 1e-6)
    return scaled


def _straight(channels: Array) -> Array:
    """Gaps filled by straight lines, before the first and after the last value by these."""
    filled = channels.copy()
    for own in filled:
        known = np.isfinite(own)
        if known.any():
            own[~known] = np.interp((~known).nonzero()[0], known.nonzero()[0], own[known])
    return filled


def _r2(guess: Array, truth: Array) -> float:
    """Of values in standard deviations from their channel's mean, which is the guess that has 0."""
    return float(1 - np.square(guess - truth).sum() / max(float(np.square(truth).sum()), 1e-12))


def _auc(scores: Array, marked: NDArray[np.bool_]) -> float:
    """How often a marked step scores higher than one that is not, of those that have a score."""
    from sklearn.metrics import roc_auc_score

    known = np.isfinite(scores)
    return float(roc_auc_score(marked[known], scores[known]))
