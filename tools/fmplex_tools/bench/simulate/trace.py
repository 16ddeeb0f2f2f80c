"""Loads: rows of vFMs that arrive over time, read from a file or made up."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fmplex_backend.errors import InvalidInput
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import VfmPolicy

FLOODER = "flooder"
MOST_ARRIVALS = 5_000_000
LONGEST = 1_000_000
"""Tokens in a row."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: a row of each of ``sizes`` tokens."""

    time: float
    vfm: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row: any of ``choices``, or log-uniform from the first to the last where ``spread``."""

    choices: tuple[int, ...]
    spread: bool = False

    @classmethod
    def parse(cls, spec: str) -> Lengths:
        """``64``, ``16,64,256`` (each as likely) or ``8-256`` (log-uniform). Raises `InvalidInput`."""
        spread = "-" in spec
        try:
            choices = tuple(int(part) for part in spec.split("-" if spread else ","))
        except ValueError:
            choices = ()
        if not choices or min(choices) < 1 or max(choices) > LONGEST or (spread and len(choices) != 2):
            raise InvalidInput(f"lengths {spec!r}: give tokens as 64, 16,64,256 or 8-256, each at least 1")
        return cls(tuple(sorted(choices)), spread)

    def sample(self, rng: np.random.Generator, count: int) -> list[int]:
        """So many lengths."""
        if self.spread:
            low, high = self.choices
            drawn = np.exp(rng.uniform(math.log(low), math.log(high + 1), count)).astype(int)
            return [int(size) for size in np.clip(drawn, low, high)]
        if len(self.choices) == 1:
            return [self.choices[0]] * count
        return [int(size) for size in rng.choice(self.choices, count)]

    def capacity(self, cost: CostModel, max_batch_rows: int, vfms: int) -> float:
        """Rows a second in full batches that waste nothing on padding."""
        sizes = self.sample(np.random.default_rng(0), 4096)
        work = sum(cost.work(size) for size in sizes) / len(sizes)
        return max_batch_rows / (cost.alpha + work * max_batch_rows + cost.gamma * min(vfms, max_batch_rows))


@dataclass(frozen=True)
class Load:
    """What comes in. Open: ``arrivals``, by time. Closed: every vFM always has ``backlog`` rows waiting."""

    policies: dict[str, VfmPolicy]
    span: float
    """Seconds during which rows arrive."""
    arrivals: Sequence[Arrival] = ()
    backlog: int = 0
    lengths: Lengths = field(default_factory=lambda: Lengths((64,)))
    flooders: frozenset[str] = frozenset()
    timeout: float | None = None
    """Seconds after its arrival a row that has not started expires."""


@dataclass(frozen=True)
class Synthetic:
    """A load to make up."""

    vfms: int = 16
    """Light vFMs: all but the flooder."""
    rate: float = 1000.0
    """Rows a second of the light vFMs together."""
    flood: float = 0.0
    """Rows a second of the flooder; 0 is none."""
    span: float = 10.0
    lengths: Lengths = field(default_factory=lambda: Lengths((64,)))
    rows: int = 1
    """In a request."""
    zipf: float = 0.0
    """Rate of the i-th light vFM ∝ i**-zipf."""
    duty: float = 1.0
    """Part of the time during which a light vFM sends, at its rate / duty."""
    burst_seconds: float = 1.0
    """How long it sends at a time, on average."""
    weights: tuple[float, ...] = (1.0,)
    """Of the light vFMs, in turn; the flooder has 1."""
    max_queue_size: int = 512
    latency_slo: float | None = None
    """Of the light vFMs."""
    timeout: float | None = None

    def policies(self) -> dict[str, VfmPolicy]:
        """Of all vFMs."""
        made = {
            f"vfm{i}": VfmPolicy(
                self.weights[i % len(self.weights)], max(self.max_queue_size, self.rows), latency_slo=self.latency_slo
            )
            for i in range(self.vfms)
        }
        if self.flood:
            made[FLOODER] = VfmPolicy(1.0, max(self.max_queue_size, self.rows))
        return made

    def load(self, seed: int) -> Load:
        """The arrivals. Raises `InvalidInput` where they would be too many."""
        expected = (self.rate + self.flood) * self.span / self.rows
        if expected > MOST_ARRIVALS:
            raise InvalidInput(f"{expected:,.0f} requests are more than {MOST_ARRIVALS:,}: shorten the span")
        rng = np.random.default_rng(seed)
        shares = np.arange(1.0, self.vfms + 1) ** -self.zipf
        shares = shares / shares.sum()
        streams = [(FLOODER, time) for time in self._poisson(rng, self.flood)] if self.flood else []
        if self.duty >= 1:
            times = self._poisson(rng, self.rate)
            owners = rng.choice(self.vfms, len(times), p=shares)
            streams += [(f"vfm{i}", time) for i, time in zip(owners, times, strict=True)]
        else:
            for i, share in enumerate(shares):
                streams += [(f"vfm{i}", time) for time in self._bursts(rng, self.rate * float(share))]
        sizes = self.lengths.sample(rng, len(streams) * self.rows)
        arrivals = [
            Arrival(float(time), vfm, tuple(sizes[n * self.rows : (n + 1) * self.rows]))
            for n, (vfm, time) in enumerate(streams)
        ]
        arrivals.sort(key=lambda arrival: arrival.time)
        flooders = frozenset({FLOODER} if self.flood else ())
        return Load(self.policies(), self.span, arrivals, flooders=flooders, timeout=self.timeout)

    def _poisson(self, rng: np.random.Generator, rate: float, span: float | None = None) -> list[float]:
        """Times of requests at ``rate`` rows a second."""
        span = self.span if span is None else span
        return [float(time) for time in np.sort(rng.uniform(0, span, rng.poisson(rate / self.rows * span)))]

    def _bursts(self, rng: np.random.Generator, rate: float) -> Iterator[float]:
        pause = self.burst_seconds * (1 - self.duty) / self.duty
        sending = bool(rng.random() < self.duty)
        now = 0.0
        while now < self.span:
            lasts = float(rng.exponential(self.burst_seconds if sending else pause))
            if sending:
                for time in self._poisson(rng, rate / self.duty, lasts):
                    if now + time < self.span:
                        yield now + time
            now += lasts
            sending = not sending


# ---- files ----

Number = TypeVar("Number", int, float)
COLUMNS = ("time_s", "vfm", "tokens", "rows", "weight")


def read_trace(
    path: Path,
    *,
    flooders: Sequence[str] = (),
    max_queue_size: int = 512,
    timeout: float | None = None,
    latency_slo: float | None = None,
) -> Load:
    """A ``.csv`` with a header or a ``.jsonl`` file: time_s, vfm, tokens, and if given rows (1) and weight (1).

    Raises `InvalidInput` that names file, line and value.
    """
    records = _jsonl(path) if path.suffix == ".jsonl" else _csv(path)
    arrivals = []
    weights: dict[str, tuple[float, int]] = {}
    try:
        for line, record in records:
            arrival, weight = _arrival(f"{path}:{line}", record)
            known, first = weights.setdefault(arrival.vfm, (1.0 if weight is None else weight, line))
            if weight is not None and weight != known:
                where = f"{path}:{line}: weight {weight:g}"
                raise InvalidInput(f"{where}: vFM {arrival.vfm!r} has weight {known:g} since line {first}")
            arrivals.append(arrival)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from None
    if not arrivals:
        raise InvalidInput(f"{path}: no request in it")
    if unknown := set(flooders) - weights.keys():
        raise InvalidInput(f"{path}: no vFM {sorted(unknown)[0]!r} in it to call a flooder")
    arrivals.sort(key=lambda arrival: arrival.time)
    largest = max(len(arrival.sizes) for arrival in arrivals)
    room = max(max_queue_size, largest)
    policies = {
        vfm: VfmPolicy(weight, room, latency_slo=None if vfm in flooders else latency_slo)
        for vfm, (weight, _) in weights.items()
    }
    span = max(arrivals[-1].time, 1e-3)
    return Load(policies, span, arrivals, flooders=frozenset(flooders), timeout=timeout)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restkey="")
        header = reader.fieldnames or []
        if lacking := [name for name in COLUMNS[:3] if name not in header]:
            raise InvalidInput(f"{path}:1: no column {lacking[0]!r}; the header is {','.join(header)!r}")
        if unknown := [name for name in header if name not in COLUMNS]:
            raise InvalidInput(f"{path}:1: column {unknown[0]!r} is none of {', '.join(COLUMNS)}")
        for record in reader:
            if "" in record:
                raise InvalidInput(f"{path}:{reader.line_num}: more values than the header has columns")
            yield reader.line_num, record


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise InvalidInput(f"{path}:{number}: not a JSON object: {line.strip()[:60]!r}")
            if unknown := [name for name in record if name not in COLUMNS]:
                raise InvalidInput(f"{path}:{number}: key {unknown[0]!r} is none of {', '.join(COLUMNS)}")
            yield number, record


def _arrival(where: str, record: dict[str, Any]) -> tuple[Arrival, float | None]:
    seconds = "seconds from the start, 0 or more"
    time = _number(where, record, "time_s", float, seconds, lambda t: 0 <= t < math.inf)
    vfm = record.get("vfm")
    if not isinstance(vfm, str) or not vfm:
        raise InvalidInput(f"{where}: vfm {vfm!r}: give a name")
    tokens = _number(where, record, "tokens", int, f"a whole number from 1 to {LONGEST:,}", lambda n: 1 <= n <= LONGEST)
    rows = _number(where, record, "rows", int, "a whole number from 1 to 4096", lambda n: 1 <= n <= 4096, default=1)
    weight = None
    if record.get("weight") not in (None, ""):
        weight = _number(where, record, "weight", float, "a number above 0", lambda w: 0 < w < math.inf)
    return Arrival(time, vfm, (tokens,) * rows), weight


def _number(
    where: str,
    record: dict[str, Any],
    name: str,
    kind: Callable[[Any], Number],
    right: str,
    good: Callable[[Number], bool],
    default: Number | None = None,
) -> Number:
    given = record.get(name)
    if given is None or given == "":
        if default is None:
            raise InvalidInput(f"{where}: no {name}; give {right}")
        return default
    try:
        number = kind(given)
        whole = isinstance(given, str) or number == given
    except (ValueError, TypeError, OverflowError):
        raise InvalidInput(f"{where}: {name} {given!r}: give {right}") from None
    if isinstance(given, bool) or not whole or not good(number):
        raise InvalidInput(f"{where}: {name} {given!r}: give {right}")
    return number
