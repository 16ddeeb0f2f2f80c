"""Whether an answer is that of the version and the vFM that its ``info`` names. Pure: no sockets, no clock.

1. ``info`` names the vFM that was asked, in every row.
2. All rows of one answer are of one generation.
3. Each row's logits are those that this version of this vFM gave to the same text when it was asked alone.
4. Each row's label is that of its largest logit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, int]
"""vFM, version."""
Logits = NDArray[np.float32]
References = Mapping[Key, Logits]
"""What each version of each vFM answers: [texts, outputs]."""
TOLERANCE = 1e-4
"""Largest absolute deviation of a logit in fp32: other neighbours in the batch, another order of sums."""
KEPT = 10
"""Wrong answers whose details are kept."""


@dataclass(frozen=True)
class Answer:
    """One request's answer."""

    asked: str
    texts: tuple[int, ...]
    """Row → number of the text."""
    logits: Logits
    """[rows, outputs]"""
    labels: tuple[str, ...]
    infos: tuple[Mapping[str, Any], ...]


@dataclass
class Checker:
    """Holds answers to what is known of them, and keeps count."""

    references: References
    labels: Mapping[str, Sequence[str]]
    """vFM → the names of its outputs."""
    tolerance: float = TOLERANCE
    requests: int = 0
    rows: int = 0
    deviation: float = 0.0
    """The largest of those that were within the tolerance."""
    wrong: int = 0
    """Requests with something wrong in them."""
    details: list[str] = field(default_factory=list)
    """Of the first `KEPT` of them."""
    by_version: dict[Key, int] = field(default_factory=dict)
    """Requests that each version answered."""

    def check(self, answer: Answer) -> bool:
        """Whether everything about ``answer`` is right."""
        self.requests += 1
        self.rows += len(answer.texts)
        problem = self._problem(answer)
        if problem is not None:
            self.wrong += 1
            if len(self.details) < KEPT:
                self.details.append(f"asked {answer.asked!r} for texts {list(answer.texts)}: {problem}")
        return problem is None

    def _problem(self, answer: Answer) -> str | None:
        rows = (len(answer.texts), len(answer.logits), len(answer.labels), len(answer.infos))
        if len(set(rows)) != 1:
            return f"rows asked, and of logits, labels and info, are {rows}"
        others = {info["vfm"] for info in answer.infos} - {answer.asked}
        if others:
            return f"answered by {', '.join(map(repr, sorted(others)))}; {self._closest(answer)}; {answer.infos}"
        generations = {(info["version"], info["generation"]) for info in answer.infos}
        if len(generations) > 1:
            return f"rows of several generations: {answer.infos}"
        key = (answer.asked, int(answer.infos[0]["version"]))
        if key not in self.references:
            return f"version {key[1]} was never published; {answer.infos[0]}"
        self.by_version[key] = self.by_version.get(key, 0) + 1
        return self._deviates(answer, key) or self._mislabelled(answer)

    def _deviates(self, answer: Answer, key: Key) -> str | None:
        expected = self.references[key][list(answer.texts)]
        deviation = difference(answer.logits, expected)
        if deviation <= self.tolerance:
            self.deviation = max(self.deviation, deviation)
            return None
        worst = max(range(len(expected)), key=lambda row: difference(answer.logits[row], expected[row]))
        return (
            f"info names version {key[1]}, from which it deviates by {deviation:.3g}; row {worst} is "
            f"{answer.logits[worst].tolist()} instead of {expected[worst].tolist()}; {self._closest(answer)}; "
            f"{answer.infos[worst]}"
        )

    def _mislabelled(self, answer: Answer) -> str | None:
        names = self.labels[answer.asked]
        for row, label in enumerate(answer.labels):
            largest = names[int(answer.logits[row].argmax())]
            if label != largest:
                return f"row {row} is labelled {label!r}, its largest logit is {largest!r}'s; {answer.infos[row]}"
        return None

    def _closest(self, answer: Answer) -> str:
        """Which version of which vFM would have answered so."""
        found = {
            key: difference(answer.logits, known[list(answer.texts)])
            for key, known in self.references.items()
            if known.shape[1:] == answer.logits.shape[1:]
        }
        if not found:
            return "no vFM has so many outputs"
        (name, version), distance = min(found.items(), key=lambda item: item[1])
        return f"closest is version {version} of {name!r}, at {distance:.3g}"


def difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest absolute difference; infinite where the shapes differ or something is not finite."""
    if ours.shape != theirs.shape:
        return math.inf
    found = float(np.max(np.abs(ours.astype(np.float64) - theirs), initial=0.0))
    return found if math.isfinite(found) else math.inf


def largest_difference(first: References, second: References) -> float:
    """Between two recordings of the same versions; infinite where one has what the other lacks."""
    if first.keys() != second.keys():
        return math.inf
    return max((difference(first[key], second[key]) for key in first), default=0.0)


def least_distance(references: References) -> float:
    """How far apart the answers of any two versions to the same text are at least: what a mistake would look like."""
    least = math.inf
    by_width: dict[int, list[Logits]] = {}
    for known in references.values():
        by_width.setdefault(known.shape[1], []).append(known)
    for group in by_width.values():
        stacked = np.stack(group).astype(np.float64)  # [versions, texts, outputs]
        for place in range(len(stacked) - 1):
            apart = np.abs(stacked[place + 1 :] - stacked[place]).max(axis=2)
            least = min(least, float(apart.min()))
    return least
