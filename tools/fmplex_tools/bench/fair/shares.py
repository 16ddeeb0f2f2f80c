"""Weights give shares of device time, and an edited weight gives another share soon."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_tools.bench.fair.bench import FLOODER, HEAD, LORA, Bench, Figure, Outcome, Phase, plain, saturating

WEIGHTS = {HEAD: 1.0, LORA: 2.0, FLOODER: 4.0}
LENGTHS = {
    "equal lengths": {HEAD: (16,), LORA: (16,), FLOODER: (16,)},
    "different lengths": {HEAD: (40,), LORA: (16,), FLOODER: (8,)},
}
SHARE_GOAL = 0.03
EDIT_GOAL = 2.0
BIN = 0.25
SETTLED = 0.05
SETTLED_BINS = 4
"""A share has settled when the mean of so many bins from there on is within `SETTLED` of what the weights say."""


def weights(bench: Bench) -> Outcome:
    """Three saturated vFMs with weights 1:2:4."""
    outcome = Outcome()
    for title, lengths in LENGTHS.items():
        bench.arena.set_policies(**plain(**WEIGHTS))
        waiting: dict[str, int] = {}

        def look(_: float, waiting: dict[str, int] = waiting) -> None:
            for vfm in bench.arena.status()["vfms"]:
                name = vfm["name"]
                if name in WEIGHTS:
                    waiting[name] = min(waiting.get(name, vfm["waiting"]), vfm["waiting"])

        streams = [saturating(vfm, tokens) for vfm, tokens in lengths.items()]
        phase = bench.phase(f"weights 1:2:4, {title}", streams, on_tick=look)
        bench.found.setdefault("saturated", phase)
        _note_shares(outcome, title, phase, waiting)
    return outcome


def _note_shares(outcome: Outcome, title: str, phase: Phase, waiting: dict[str, int]) -> None:
    charged = {vfm: phase.charged(vfm) for vfm in WEIGHTS}
    total, sum_of_weights = sum(charged.values()), sum(WEIGHTS.values())
    errors = {}
    for vfm, weight in WEIGHTS.items():
        share, wanted = charged[vfm] / total, weight / sum_of_weights
        errors[vfm] = share / wanted - 1
        outcome.figures.append(Figure("weights", f"{title}: {vfm}", 100 * share, "%", f"{100 * wanted:.2f} %"))
    worst = max(abs(error) for error in errors.values())
    goal = f"≤ {100 * SHARE_GOAL:g} %"
    outcome.figures.append(Figure("weights", f"{title}: largest error", 100 * worst, "%", goal, worst <= SHARE_GOAL))
    least = min(waiting.values())
    outcome.figures.append(Figure("weights", f"{title}: least rows waiting", least, "rows", "> 0", least > 0))
    outcome.details[title] = {
        "device_seconds": charged,
        "errors": errors,
        "rows_per_s": {vfm: phase.rate(vfm) for vfm in WEIGHTS},
        "window_s": phase.seconds,
    }


def weight_edit(bench: Bench) -> Outcome:
    """Two saturated vFMs 1:1; one's file is edited to 4 by a rename, and back in place."""
    bench.arena.set_policies(**plain(**{HEAD: 1, LORA: 1}))
    third = max(4.0, bench.seconds / 3)
    edits: list[tuple[float, float, str]] = []

    def edit(now: float) -> None:
        begun.append(now)
        if len(edits) == 0 and now > begun[0] + third:
            edits.append((bench.arena.edit_weight(LORA, 4, in_place=False), 0.8, "1 → 4 by rename"))
        if len(edits) == 1 and now > begun[0] + 2 * third:
            edits.append((bench.arena.edit_weight(LORA, 1, in_place=True), 0.5, "4 → 1 in place"))

    begun: list[float] = []
    streams = [saturating(vfm, (8,), rows=4, in_flight=48) for vfm in (HEAD, LORA)]
    phase = bench.phase("weight edited under load", streams, seconds=3 * third, on_tick=edit)
    times, shares = share_series(phase)
    outcome = Outcome(details={"t_s": [round(t, 3) for t in times - phase.start], "share": _plain(shares), "edits": []})
    ends = [edits[1][0], phase.end]
    for (when, target, title), end in zip(edits, ends, strict=True):
        half, settled = _times(times, shares, when, end, 1.3 - target, target)
        outcome.details["edits"].append(
            {"t_s": when - phase.start, "title": title, "share": target, "half_s": half, "settled_s": settled}
        )
        outcome.figures.append(Figure("weight-edit", f"{title}: past half-way", half, "s"))
        good = settled <= EDIT_GOAL
        outcome.figures.append(Figure("weight-edit", f"{title}: settled", settled, "s", f"≤ {EDIT_GOAL:g} s", good))
    return outcome


def share_series(phase: Phase) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ends of bins, and LORA's share of the device time in each.

    A row's part of its batch counts in the bins in which the batch ran: it ended about when the row was answered.
    """
    edges = np.arange(phase.start, phase.end, BIN)
    used = {vfm: _device_time(phase, vfm, edges) for vfm in (HEAD, LORA)}
    total = used[HEAD] + used[LORA]
    shares = np.divide(used[LORA], total, out=np.full_like(total, np.nan), where=total > 0)
    return edges[1:], shares


def _device_time(phase: Phase, vfm: str, edges: NDArray[Any]) -> NDArray[Any]:
    rows = phase.traffic.rows_of(vfm)
    ended = phase.traffic.ended(rows)
    begun = ended - rows["computed"]
    seconds = np.zeros(len(edges) - 1)
    for index, (left, right) in enumerate(itertools.pairwise(edges)):
        inside = np.clip(np.minimum(ended, right) - np.maximum(begun, left), 0, None)
        seconds[index] = np.sum(inside / rows["batch_rows"])
    return seconds


def _times(
    times: NDArray[Any], shares: NDArray[Any], when: float, end: float, old: float, new: float
) -> tuple[float, float]:
    """Seconds from the edit until the share is past half-way, and until it has settled; infinite where never."""
    after = [i for i in range(len(times)) if when < times[i] <= end]
    halfway = (old + new) / 2
    half = next((times[i] - when for i in after if (shares[i] - halfway) * (new - old) > 0), np.inf)
    settled = np.inf
    for i in after[: -SETTLED_BINS + 1]:
        mean = np.nanmean(shares[i : i + SETTLED_BINS])
        if abs(mean / new - 1) <= SETTLED and (shares[i] - halfway) * (new - old) > 0:
            settled = max(0.0, times[i] - when)
            break
    return float(half), float(settled)


def _plain(shares: NDArray[Any]) -> list[float | None]:
    return [None if np.isnan(share) else round(float(share), 4) for share in shares]
