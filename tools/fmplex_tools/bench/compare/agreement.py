"""Whether our load generator measures what perf_analyzer measures: the same closed loop from both, by turns."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.compare.answers import summary
from fmplex_tools.bench.compare.replayer import Replay, Tick
from fmplex_tools.bench.compare.texts import Texts
from fmplex_tools.bench.compare.workload import Lengths, Schedule, Workload, schedule
from fmplex_tools.bench.perf import Load, measure
from fmplex_tools.bench.perf_binary import PerfAnalyzer

TEXTS = 256
"""So many lengths, and texts of perf_analyzer, are sent in turn."""
WARM_PART = 0.1
"""The part of our turns that does not count; perf_analyzer's windows begin when all its clients run."""


@dataclass(frozen=True)
class Side:
    """What one of them measured, or how ours relates to theirs."""

    rows_per_s: float
    mean_ms: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Agreement:
    """Medians over the turns of each side, and of ours over perf_analyzer's in the same pair of turns."""

    perf_analyzer: Side
    ours: Side
    ratios: Side
    pairs: tuple[tuple[Side, Side], ...]
    """(perf_analyzer's, ours) of each pair of turns."""


def closed_agreement(
    url: str,
    model: str,
    binary: PerfAnalyzer,
    *,
    concurrency: int = 8,
    lengths: Lengths = "mixed",
    seconds: float = 6.0,
    turns: int = 5,
    seed: int = 0,
    on_tick: Tick | None = None,
) -> Agreement:
    """Ask ``model`` with perf_analyzer and with `Replay.closed`, ``turns`` times each for ``seconds``.

    ``url`` is gRPC ``host:port``. Both send rows of the same lengths in the same order, made by `Texts` (perf_analyzer
    the same `TEXTS` over and over, we others each time), and ask for all outputs. Each pair of turns begins with the
    other one. Raises what `measure` and `Replay` raise, and `EngineFailure` where requests of ours fail.
    """
    made = _lengths(lengths, seed)
    texts = [Texts(seed).make(number, int(tokens)) for number, tokens in enumerate(made.tokens)]
    load = Load(model, url, "grpc", concurrency, seconds=seconds)

    def theirs() -> Side:
        row = measure(binary, load, texts)
        return Side(row.rows_per_s, row.mean_ms, row.p50_ms, row.p99_ms)

    def ours() -> Side:
        with Replay(url, [model], output=None, seed=seed) as replay:
            found = replay.closed(made, concurrency, seconds)
        figures = summary(found, warm=WARM_PART * seconds, until=seconds)
        if figures.failed:
            raise EngineFailure(f"{figures.failed} requests failed, {figures.late} of them late; {found.failures}")
        return Side(figures.answered_per_s, figures.mean_ms, figures.p50_ms, figures.p99_ms)

    ours()  # the first to ask a server would meet it cold
    pairs = []
    for turn in range(turns):
        sides: dict[Callable[[], Side], Side] = {}
        for side in (theirs, ours) if turn % 2 == 0 else (ours, theirs):
            sides[side] = side()
            if on_tick is not None:
                on_tick((turn + len(sides) / 2) / turns)
        pairs.append((sides[theirs], sides[ours]))
    return agreement(pairs)


def agreement(pairs: list[tuple[Side, Side]]) -> Agreement:
    """Of (perf_analyzer's, ours), a pair at least."""
    return Agreement(
        perf_analyzer=_medians([theirs for theirs, _ in pairs]),
        ours=_medians([ours for _, ours in pairs]),
        ratios=_medians([_ratio(ours, theirs) for theirs, ours in pairs]),
        pairs=tuple(pairs),
    )


def _lengths(lengths: Lengths, seed: int) -> Schedule:
    """`TEXTS` rows of one task."""
    made = schedule(Workload(tasks=1, rate=TEXTS, seconds=2.0, seed=seed, lengths=lengths))
    return Schedule(made.due[:TEXTS], made.task[:TEXTS], made.tokens[:TEXTS])


def _ratio(one: Side, other: Side) -> Side:
    values = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return Side(*(a / b for a, b in values))


def _medians(sides: list[Side]) -> Side:
    columns = zip(*(dataclasses.astuple(side) for side in sides), strict=True)
    return Side(*(statistics.median(column) for column in columns))
