"""Whether a deployment answers what plain transformers + peft would: every task, alone and among others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import engine_environment
from fmplex_tools.bench.compare.started import Started

TOLERANCE = 1e-4
"""Of a probability."""
CLIENTS = 16
TEXTS = (
    "no",
    "a good film",
    "Shares fell on Monday as banks sold what they could; nobody bought.",
    "The book was not very good, but the film is: it isn't dull, it isn't long, and it ends well. " * 3,
)
"""Of different lengths, so that batches are padded."""


def reference(backbone: Path, versions: Sequence[Path], texts: Sequence[str] = TEXTS) -> list[Array]:
    """Probabilities by each version folder, float64 [texts, labels]; see `plain`.

    In a process of its own, so that no torch stands beside a measurement. Raises `EngineFailure` with its last words.
    """
    asked = {"backbone": str(backbone), "versions": [str(version) for version in versions], "texts": list(texts)}
    command = [sys.executable, "-m", "fmplex_tools.bench.compare.plain"]
    ran = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, env=engine_environment(), check=False
    )
    if ran.returncode:
        raise EngineFailure(f"plain transformers + peft gave no reference:\n{ran.stderr[-2000:]}")
    return [np.array(rows) for rows in json.loads(ran.stdout)]


def check(started: Started, texts: Sequence[str] = TEXTS, expected: Sequence[Array] | None = None) -> float:
    """Ask every task each text alone, then all at once from `CLIENTS` threads; the largest difference.

    ``expected``: a `reference` of each task, made here unless given. Raises `EngineFailure` naming deployment, task and
    difference where one is beyond `TOLERANCE`.
    """
    repository = started.repository
    if expected is None:
        versions = [repository.version(task) for task in range(len(repository.tasks))]
        expected = reference(repository.backbone, versions, texts)
    requests = [(task, text) for text in range(len(texts)) for task in range(len(repository.tasks))]

    def ask(request: tuple[int, int]) -> Array:
        task, text = request
        answer: Array = started.ask(task, [texts[text]])[0]
        return answer

    largest = 0.0
    with ThreadPoolExecutor(CLIENTS) as clients:
        for how, asked, mapped in (("alone", requests, map), ("among others", requests * 2, clients.map)):
            for (task, text), answer in zip(asked, mapped(ask, asked), strict=True):
                found = difference(answer, expected[task][text])
                if not found <= TOLERANCE:  # nor where it is not a number
                    raise EngineFailure(
                        f"{started.deployment.title}: {repository.tasks[task]!r}, asked {how}, is {found:.2g} off what "
                        f"plain transformers + peft answer (at most {TOLERANCE:g})"
                    )
                largest = max(largest, found)
    return largest


def difference(answer: Array, expected: Array) -> float:
    """The largest of any probability; infinite where the labels are not as many."""
    return float(np.abs(answer - expected).max()) if answer.shape == expected.shape else float("inf")
