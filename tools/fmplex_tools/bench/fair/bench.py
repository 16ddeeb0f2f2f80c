"""What all scenarios use: a server, phases of load with their progress, and figures with their goals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.meters import DEVICE_SECONDS, read
from fmplex_tools.bench.fair.streams import Stream, Traffic
from fmplex_tools.top.scrape import FmScrape

FM = "minilm"
HEAD, LORA, FLOODER, OTHER = VFMS = ("news_topic", "tweet_sentiment", "film_polarity", "tweet_intensity")
"""Of the demo: a head alone, LoRA on query and value, LoRA on four kinds of layers, rank-stabilized LoRA."""
QUEUE = 512
WARM_UP = 2.0
TICK = 0.25


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``good`` is None where nothing was promised."""

    scenario: str
    name: str
    value: float
    unit: str = ""
    goal: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Phase:
    """What a phase of load gave; its window leaves out the warm-up and the end."""

    traffic: Traffic
    start: float
    end: float
    before: FmScrape
    after: FmScrape
    """Of the server's metrics, at both ends of the window."""

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.after.at - self.before.at

    def gained(self, name: str, vfm: str | None = None) -> float:
        """What ``name`` gained in the window, of one vFM or in all."""
        return self.after.value(name, vfm=vfm) - self.before.value(name, vfm=vfm)

    def charged(self, *vfms: str) -> float:
        """Seconds of device time in the window."""
        return sum(self.gained(DEVICE_SECONDS, vfm=vfm) for vfm in vfms)

    def rate(self, *vfms: str) -> float:
        """Rows a second that were answered in the window."""
        return self.traffic.rate(vfms, self.start, self.end)


@dataclass
class Outcome:
    """What a scenario gave."""

    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Plain data for the JSON file and the plots."""


@dataclass
class Bench:
    """A server to try, and what was found out about it so far."""

    source: Path
    arena: Arena
    policy: str
    threads: int
    seconds: float
    """Of a phase's window."""
    progress: Progress
    seed: int = 0
    slo_ms: float = 0.0
    """Latency objective to try; 0 chooses one."""
    found: dict[str, Any] = field(default_factory=dict)
    """Facts that one scenario leaves for another."""

    def phase(
        self,
        title: str,
        *groups: Sequence[Stream],
        seconds: float | None = None,
        on_arena: Arena | None = None,
        on_tick: Callable[[float], None] | None = None,
    ) -> Phase:
        """Load the server with ``groups`` of streams (a process each) and measure for ``seconds``."""
        made = on_arena or self.arena
        window = seconds or self.seconds
        line = self.progress.add_task(title, total=WARM_UP + window + 1)
        try:
            with Load(made.url, *groups, seed=self.seed) as load:
                begun = load.start()
                self._pass(line, begun, begun + WARM_UP)
                before, start = read(made), time.monotonic()
                self._pass(line, begun, start + window, on_tick)
                end, after = time.monotonic(), read(made)
                self.progress.update(line, description=f"{title}: waiting for the last answers")
                return Phase(load.stop(), start, end, before, after)
        finally:
            self.progress.remove_task(line)

    def _pass(self, line: Any, begun: float, until: float, on_tick: Callable[[float], None] | None = None) -> None:
        while (now := time.monotonic()) < until:
            if on_tick is not None:
                on_tick(now)
            self.progress.update(line, completed=now - begun)
            time.sleep(max(0.0, min(TICK, until - time.monotonic())))


def saturating(vfm: str, tokens: tuple[int, ...] = (16,), *, rows: int = 8, in_flight: int = 20) -> Stream:
    """So many rows of ``vfm`` at a time that some always wait, and none is refused."""
    return Stream(vfm, tokens, rows, in_flight=in_flight)


def plain(**weights: float) -> dict[str, dict[str, float]]:
    """Policies of these weights and nothing else but a queue that the load fits into."""
    return {name: {"weight": weight, "max_queue_size": QUEUE} for name, weight in weights.items()}
