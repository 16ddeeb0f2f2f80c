"""How good vFMs are as they are served: held-out rows through a running server, against ``vfm.json``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fmplex_backend.repository.artifact import Quality
from fmplex_backend.repository.layout import versions
from fmplex_backend.repository.packed import read_artifact
from fmplex_client import Classification, Client, Embedding, MultiLabel, Regression, TokenClassification
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.evaluate import Score, score
from fmplex_tools.tasks.kinds import encode
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.prepare import prepare_data
from fmplex_tools.tasks.rows import Sound

TIMEOUT_S = 120.0
MARGIN = 0.05
"""Least distance from the baseline that counts as clearly above it."""


@dataclass(frozen=True)
class LiveScore:
    """One vFM's quality as served, beside what training wrote down."""

    name: str
    served: Score
    written: Quality
    rows: int
    single_rows_agree: bool
    """Whether rows sent alone were answered as in batches, within 1e-5."""

    @property
    def as_written(self) -> bool:
        """As good as written down; a row or two may tip over in the last bit."""
        return self.single_rows_agree and abs(self.served.value - self.written.value) <= 2 / self.rows + 5e-4

    @property
    def good(self) -> bool:
        """As good as written down, and clearly above the baseline."""
        return self.as_written and self.served.value >= self.written.baseline + MARGIN


def evaluate_served(
    client: Client, repository: Path, name: str, examples: Examples, options: TaskOptions, singles: int = 8
) -> LiveScore:
    """Ask a server for every held-out row of the vFM ``name``, in batches, and ``singles`` of them alone too.

    ``examples`` and ``options`` are those that it was made with. Raises `FMplexClientError`.
    """
    folder = repository / name
    artifact = read_artifact(folder / str(max(versions(folder))), folder)
    assert artifact.quality is not None
    prepared = prepare_data(examples, options)
    train, test = (encode(prepared.kind, side, prepared.names) for side in (prepared.train, prepared.test))
    answers = _ask(client, name, prepared.test)
    few = [prepared.test.take([row]) for row in range(min(singles, len(answers)))]
    alone = [answer for row in few for answer in _ask(client, name, row)]
    pairs = zip(alone, answers, strict=False)
    agree = all(np.allclose(_raw(one), _raw(many), rtol=1e-5, atol=1e-5) for one, many in pairs)
    if prepared.kind == "token_classification":
        served = _by_token(answers, prepared.test, artifact.quality)
    else:
        index = None
        if prepared.kind == "embedding":
            index = np.stack([_raw(answer) for answer in _ask(client, name, prepared.train)])
        outputs = np.stack([_raw(answer) for answer in answers])
        served = score(test, outputs, train, threshold=artifact.threshold, train_outputs=index)
    return LiveScore(name, served, artifact.quality, len(answers), agree)


def as_client_has_it(row: Any) -> Any:
    """A row of training data as `fmplex_client` takes it."""
    return (row.samples, row.rate) if isinstance(row, Sound) else row


def _ask(client: Client, name: str, examples: Examples) -> list[Any]:
    return client.predict(name, [as_client_has_it(row) for row in examples.rows])


def _by_token(answers: Sequence[TokenClassification], examples: Examples, written: Quality) -> Score:
    """Tokens whose label is that of their word; patches whose label is their own."""
    right: list[bool] = []
    for answer, words, tags in zip(answers, examples.words or (), examples.labels or (), strict=True):
        if answer.tokens and answer.tokens[0].start is None:
            right += [token.label == tag for token, tag in zip(answer.tokens, tags, strict=True)]
            continue
        starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
        for token in answer.tokens:
            if token.start is not None and token.start != token.end:
                right.append(token.label == tags[bisect_right(starts, token.start) - 1])
    return Score(written.metric, float(np.mean(right)), written.baseline_metric, written.baseline)


def _raw(answer: object) -> NDArray[np.float32]:
    if isinstance(answer, (Classification, MultiLabel)):
        assert answer.logits is not None
        return answer.logits
    if isinstance(answer, Regression):
        return answer.values
    if isinstance(answer, TokenClassification):
        return np.array([token.score for token in answer.tokens], np.float32)
    assert isinstance(answer, Embedding)
    return answer.vector


def scores_table(scores: Iterable[tuple[LiveScore, bool]]) -> tuple[Table, int]:
    """For a terminal: each score and whether it is as it should be; and how many are not."""
    table = Table()
    table.add_column("vFM", no_wrap=True)
    table.add_column("metric", overflow="fold")
    for column in ("rows", "baseline", "written", "served", "alone = batch", "good"):
        table.add_column(column, justify="right", overflow="fold")
    bad = 0
    for live, good in scores:
        bad += not good
        figures = [f"{value:.3f}" for value in (live.written.baseline, live.written.value, live.served.value)]
        yes = ["yes" if flag else "[red]no[/]" for flag in (live.single_rows_agree, good)]
        table.add_row(live.name, live.written.metric, str(live.rows), *figures, *yes)
    return table, bad
