"""What fairness costs in rows a second: the same load on two servers by turns, one of them first come, first served."""

from __future__ import annotations

import statistics

from fmplex_tools.bench.fair.arena import Arena, arena
from fmplex_tools.bench.fair.bench import FLOODER, FM, HEAD, LORA, VFMS, Bench, Figure, Outcome, plain, saturating

LENGTHS = {"equal lengths": (16,), "mixed lengths": (8, 16, 24, 32, 40)}
LOADED = (HEAD, LORA, FLOODER)
PAIRS = 5
GOAL = 0.97
OTHER_POLICY = "fifo"


def throughput(bench: Bench) -> Outcome:
    """Saturated rows/s by turns: A B A B …; the median of the ratios of neighbours."""
    outcome = Outcome()
    policies = plain(**dict.fromkeys(LOADED, 1.0))
    bench.arena.set_policies(**policies)
    with arena(bench.source, FM, VFMS, policy=OTHER_POLICY, threads=bench.threads) as other:
        other.set_policies(**policies)
        for title, lengths in LENGTHS.items():
            ours, theirs = [], []
            for turn in range(PAIRS):
                of_turn = f"{title}, turn {turn + 1} of {PAIRS}"
                ours.append(_rate(bench, f"throughput: {bench.policy}, {of_turn}", lengths, bench.arena))
                theirs.append(_rate(bench, f"throughput: {OTHER_POLICY}, {of_turn}", lengths, other))
            # Every neighbouring pair, in either order, so that a drift of the machine favours neither.
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            ratios += [a / b for a, b in zip(ours[1:], theirs, strict=False)]
            ratio = statistics.median(ratios)
            for name, rates in ((bench.policy, ours), (OTHER_POLICY, theirs)):
                median = statistics.median(rates)
                outcome.figures.append(Figure("throughput", f"{title}: {name}", median, "rows/s"))
            outcome.figures.append(
                Figure("throughput", f"{title}: ratio", ratio, "", f"≥ {GOAL}", ratio >= GOAL),
            )
            outcome.details[title] = {bench.policy: ours, OTHER_POLICY: theirs, "ratios": ratios}
    return outcome


def _rate(bench: Bench, title: str, lengths: tuple[int, ...], made: Arena) -> float:
    streams = [saturating(vfm, lengths) for vfm in LOADED]
    return bench.phase(title, streams, seconds=max(3.0, bench.seconds / 3), on_arena=made).rate(*LOADED)
