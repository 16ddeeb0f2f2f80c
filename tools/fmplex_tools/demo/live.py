"""How good the demo's vFMs are as they are served: held-out rows through a running server, against ``vfm.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.repository.artifact import Artifact, Quality
from fmplex_backend.repository.layout import versions
from fmplex_backend.repository.packed import read_artifact
from fmplex_client import Classification, Client, Embedding, MultiLabel, Regression
from fmplex_client.wire import Protocol
from fmplex_tools.demo.specs import DEMO, DemoTask
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.evaluate import Score, score
from fmplex_tools.tasks.kinds import encode
from fmplex_tools.tasks.prepare import prepare_data

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
    def good(self) -> bool:
        """As good as written down (a row or two may tip over in the last bit), and clearly above the baseline."""
        as_written = abs(self.served.value - self.written.value) <= 2 / self.rows + 5e-4
        return as_written and self.served.value >= self.written.baseline + MARGIN and self.single_rows_agree


def evaluate_live(repository: Path, url: str, protocol: Protocol, singles: int = 8) -> Iterator[LiveScore]:
    """Ask the server at ``url`` for every held-out row of the demo's vFMs, in batches, and some of them alone too."""
    with Client(url, protocol, timeout=TIMEOUT_S) as client:
        for task in DEMO:
            folder = repository / task.name
            artifact = read_artifact(folder / str(max(versions(folder))), folder)
            yield _evaluate(client, task, artifact, singles)


def _evaluate(client: Client, task: DemoTask, artifact: Artifact, singles: int) -> LiveScore:
    prepared = prepare_data(task.load(), task.options)
    train, test = (encode(prepared.kind, side, prepared.names) for side in (prepared.train, prepared.test))
    outputs = _outputs(client, task.name, prepared.test)
    index = _outputs(client, task.name, prepared.train) if prepared.kind == "embedding" else None
    served = score(test, outputs, train, threshold=artifact.threshold, train_outputs=index)
    alone = np.concatenate(
        [_outputs(client, task.name, prepared.test.take([row])) for row in range(min(singles, len(outputs)))]
    )
    assert artifact.quality is not None
    agree = bool(np.allclose(alone, outputs[: len(alone)], rtol=1e-5, atol=1e-5))
    return LiveScore(task.name, served, artifact.quality, len(outputs), agree)


def _outputs(client: Client, name: str, examples: Examples) -> NDArray[np.float32]:
    """Raw outputs [rows, width]: logits, values or embeddings."""
    answers: Sequence[object] = client.predict(name, list(examples.rows))
    return np.stack([_raw(answer) for answer in answers])


def _raw(answer: object) -> NDArray[np.float32]:
    if isinstance(answer, (Classification, MultiLabel)):
        assert answer.logits is not None
        return answer.logits
    if isinstance(answer, Regression):
        return answer.values
    assert isinstance(answer, Embedding)
    return answer.vector
