"""How long 99 of 100 rows take on a device, from what comes in: linear, so that it can be planned with.

A device runs the batches of its physical FMs in turn. A round of them takes ::

    C = Σ a_f / (1 - W)        W = Σ rate · (E[u(L)] + γ + max(a_f, α_f + padding) / n)

seconds: what comes in during a round, W·C of work, is in the next round's batches. a_f is the FM's α, half as large
again for each group of lengths beyond the first (`launches`): the queue pads rows for no more than that, and rows of
other lengths are another batch. n is the most rows that the queue puts into a batch, for its limits of rows and of cost
(`Tuning.c_cap_lively`); a batch of several lengths wastes up to ρ·α on padding, and is closed when the next row would
waste more: n is `FILLED` of the most there (37 to 43 rows of 64 in saturated simulations).

A row waits for the round that runs, then for its own; for what comes in unevenly, on average Q / 2 / (1 - W) as in any
queue with Poisson arrivals (Pollaczek and Khinchine), of which 99 of 100 wait `TAIL` times as long at most; and for
what is in front of it of its own vFM. So 99 of 100 rows are answered within ::

    (`ROUNDS` · Σ a_f + `TAIL` / 2 · Q) / (1 - W) + own      Q = Σ rate · burst · E[(u(L) + γ)²]
                                                             own = u(longest) + (burst - 1) · E[u(L)]

FMs that share a device each take an even part of it if they can, with batches that are small for that: one has 1/k of a
device of k FMs, or what the others would leave it if they merged no two rows. W_f must be no more than four fifths of
that (`fmplex_tools.planner.problem.FULLEST_PART`).

Apart from that it is linear: a device holds what it has to where W + (Σ a_f + `TAIL` / 2 / `ROUNDS` · Q) / c ≤ 1 for
the least c of its vFMs, c = (p99 - own) / `ROUNDS`. The fair queue is what makes it right: what a vFM asks beyond its
rate is its own delay and nobody else's. `fmplex_tools.planner.verify` holds it against that queue in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import Tuning
from fmplex_tools.planner.fleet_file import VfmSpec

ROUNDS = 2.5
TAIL = 4.6
"""ln 100."""
ANOTHER_GROUP = 0.5
"""Of α."""
FILLED = 2 / 3
"""Of the most rows, in a batch of several lengths."""
ALIKE = 0.25
"""Of α: lengths whose rows' work differs by no more are of one group."""


@dataclass(frozen=True)
class Asked:
    """What one replica of a vFM asks of a device."""

    work: float
    """Part of its time."""
    spread: float
    """Seconds that it adds to a round, for what comes in unevenly."""
    ceiling: float
    """Seconds that a round may take; not above 0 where even the shortest is too long."""
    alpha: float
    """Seconds of a launch: what its FM adds to a round, as far as its own lengths go."""
    unmerged: float
    """Part of its time, were each row a batch of its own."""

    def times(self, part: float) -> Asked:
        """With this ``part`` of the rate."""
        return replace(self, work=self.work * part, spread=self.spread * part, unmerged=self.unmerged * part)

    @classmethod
    def of_all(cls, asked: Sequence[Asked]) -> Asked:
        """What vFMs of one FM ask together; the strictest ceiling."""
        return cls(
            sum(one.work for one in asked),
            sum(one.spread for one in asked),
            min(one.ceiling for one in asked),
            max(one.alpha for one in asked),
            sum(one.unmerged for one in asked),
        )


NEVER = Asked(math.inf, math.inf, -1.0, math.nan, math.inf)
"""Of a device that its FM does not run on."""


def launches(lengths: Collection[int], cost: CostModel) -> float:
    """a_f / α: what a launch counts for, with rows of all these ``lengths``."""
    groups, first = 0, -math.inf
    for length in sorted(lengths):
        if cost.work(length) - first > ALIKE * cost.alpha:
            groups, first = groups + 1, cost.work(length)
    return 1 + ANOTHER_GROUP * (groups - 1)


def asked(vfm: VfmSpec, cost: CostModel, alpha: float, beside: tuple[int, int], most_rows: int, replicas: int) -> Asked:
    """Of one of ``replicas``, ``beside`` rows from so many tokens to so many; a launch counts for ``alpha`` seconds."""
    rate, mean = vfm.rate / replicas, mean_work(vfm.lengths, cost)
    rows = min(most_rows, max(1.0, Tuning().c_cap_lively * cost.alpha / mean)) if mean else most_rows
    shortest, longest = beside
    if longest > shortest:
        rows = max(1.0, FILLED * rows)
    padding = min(Tuning().padding * cost.alpha, rows * (cost.work(longest) - mean))
    return Asked(
        rate * (mean + cost.gamma + max(alpha, cost.alpha + padding) / rows),
        _spread(vfm, cost, rate),
        _ceiling(vfm, cost),
        alpha,
        rate * (mean + cost.gamma + cost.alpha),
    )


def asked_alone(vfm: VfmSpec, cost: CostModel, most_rows: int, replicas: int) -> Asked:
    """The same of a private copy: no γ, its own lengths only, and batches limited in rows alone."""
    rate, bare = vfm.rate / replicas, CostModel(cost.alpha, cost.beta, 0.0, cost.delta)
    mean = mean_work(vfm.lengths, cost)
    return Asked(
        rate * (mean + cost.alpha / most_rows),
        _spread(vfm, bare, rate),
        _ceiling(vfm, cost),
        cost.alpha * launches(vfm.lengths, cost),
        rate * (mean + cost.alpha),
    )


def mean_work(lengths: Mapping[int, float], cost: CostModel) -> float:
    """E[u(L)], seconds."""
    return sum(often * cost.work(length) for length, often in lengths.items()) / sum(lengths.values())


def _ceiling(vfm: VfmSpec, cost: CostModel) -> float:
    own = cost.work(max(vfm.lengths)) + (vfm.burst - 1) * mean_work(vfm.lengths, cost)
    return (vfm.p99_ms / 1e3 - own) / ROUNDS


def _spread(vfm: VfmSpec, cost: CostModel, rate: float) -> float:
    squares = sum(often * (cost.work(length) + cost.gamma) ** 2 for length, often in vfm.lengths.items())
    return TAIL / 2 / ROUNDS * rate * vfm.burst * squares / sum(vfm.lengths.values())
