"""Each physical FM alone, then all of them at once, all saturated: what each gets of the cores, and each vFM of its FM.

Nothing divides the cores but Linux, which gives every engine's threads the same: with an engine each, an even part for
each physical FM that has work. Within a physical FM its own queue divides by weight, whatever the others do.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.fair.arena import START_SECONDS, Arena, wait_served
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.meters import DEVICE_SECONDS, ROWS, read
from fmplex_tools.bench.fair.streams import FAILED, Stream
from fmplex_tools.bench.families.repository import write_family
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.top.scrape import FmScrape

WEIGHTS = (1.0, 2.0, 4.0)
IN_FLIGHT, ROWS_A_REQUEST = {"text": 48}, 4
"""Requests of each vFM, 12 where nothing is said: so many that rows of all of them always wait."""
WARM_UP = 3.0
SHARE_GOAL = 0.05
CORES_GOAL = 0.8
"""Each physical FM has at least this part of its even part of the cores."""
ERROR = "fmplex_cost_error_ratio"


@dataclass(frozen=True)
class Family:
    """A physical FM on the server."""

    arena: Arena
    modality: str
    vfms: Mapping[str, float]
    """Name → weight."""

    @property
    def streams(self) -> list[Stream]:
        """As many rows of each vFM that some always wait."""
        at_a_time = IN_FLIGHT.get(self.modality, 12)
        return [Stream(v, rows=ROWS_A_REQUEST, in_flight=at_a_time, modality=self.modality) for v in self.vfms]

    def processes(self) -> list[psutil.Process]:
        """Its host and its engines."""
        status = self.arena.status()
        return [psutil.Process(pid) for pid in (status["host_pid"], *status["engine_pids"])]


@dataclass(frozen=True)
class Window:
    """What one physical FM did in a phase."""

    rows_per_s: float
    cpu_seconds: float
    """Of its host and its engines."""
    charged: Mapping[str, float]
    """vFM → seconds of device time."""
    cost_error: float


@contextlib.contextmanager
def families(fms: Mapping[str, str], modalities: Mapping[str, str], seed: int) -> Iterator[dict[str, Family]]:
    """A server of its own with these physical FMs (name → backbone), on each vFMs with `WEIGHTS`.

    Raises `FMplexError`.
    """
    with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
        repository = Path(folder) / "repository"
        vfms = {}
        for fm, backbone in fms.items():
            vfms[fm] = write_family(repository, fm, backbone, WEIGHTS, seed)
        http, grpc_port, metrics = free_ports(3)
        options = ServerOptions(repository, http, grpc_port, metrics, log_level="warning", drain_seconds=3)
        with TritonServer(options) as server:
            server.wait_ready(START_SECONDS)
            made = {fm: Family(Arena(options, fm, server.check), modalities[fm], vfms[fm]) for fm in fms}
            for family in made.values():
                wait_served(family.arena, family.vfms)
            yield made


def measure(made: Mapping[str, Family], seconds: float, seed: int, progress: Progress) -> Outcome:
    """Every physical FM alone, then all."""
    line = progress.add_task("", total=len(made) + 1)
    alone: dict[str, Window] = {}
    for fm, family in made.items():
        progress.update(line, description=f"{fm} alone", advance=1)
        alone |= _phase({fm: family}, seconds, seed)
    progress.update(line, description="all at once", advance=1)
    together = _phase(made, seconds, seed)
    progress.remove_task(line)
    outcome = Outcome(details={"alone": _plain(alone), "together": _plain(together)})
    used = sum(window.cpu_seconds for window in together.values())
    for fm, family in made.items():
        part, both = f"{fm} ({family.modality})", (alone[fm], together[fm])
        cost = family.arena.status()["cost_model"]
        own = (both[1].cpu_seconds / used) * len(made)
        worst = max(_share_error(window, family.vfms) for window in both)
        outcome.figures += [
            Figure(part, "cost model, error where it was fitted", 100 * cost["error"], "%"),
            Figure(part, "… of the batches served, alone", 100 * both[0].cost_error, "%"),
            Figure(part, "rows/s alone", both[0].rows_per_s),
            Figure(part, "… with all the others", both[1].rows_per_s),
            Figure(part, "… as a part of that alone", both[1].rows_per_s / both[0].rows_per_s, "×"),
            Figure(part, "cores that it uses alone", both[0].cpu_seconds / seconds),
            Figure(part, "processor time, of an even part", own, "×", f"≥ {CORES_GOAL:g}×", own >= CORES_GOAL),
            Figure(
                part, "shares at weights 1:2:4, largest error", 100 * worst, "%", f"≤ {100 * SHARE_GOAL:g} %",
                worst <= SHARE_GOAL,
            ),
        ]  # fmt: skip
    return outcome


def _phase(made: Mapping[str, Family], seconds: float, seed: int) -> dict[str, Window]:
    """All of ``made`` saturated at once, a load process for each."""
    processes = {fm: family.processes() for fm, family in made.items()}
    url = next(iter(made.values())).arena.url
    with Load(url, *(family.streams for family in made.values()), seed=seed) as load:
        load.start()
        time.sleep(WARM_UP)
        before = {fm: (read(family.arena), _cpu(processes[fm])) for fm, family in made.items()}
        time.sleep(seconds)
        after = {fm: (read(family.arena), _cpu(processes[fm])) for fm, family in made.items()}
        traffic = load.stop()
    if (traffic.requests["outcome"] == FAILED).any():
        raise EngineFailure(f"requests failed: {'; '.join(traffic.failures)}")
    return {fm: _window(family, *before[fm], *after[fm]) for fm, family in made.items()}


def _window(family: Family, before: FmScrape, cpu: float, after: FmScrape, cpu_after: float) -> Window:
    def gained(name: str, vfm: str, label: str | None = None) -> float:
        return after.value(name, vfm=vfm, label=label) - before.value(name, vfm=vfm, label=label)

    rows = sum(gained(ROWS, vfm, "served") for vfm in family.vfms)
    charged = {vfm: gained(DEVICE_SECONDS, vfm) for vfm in family.vfms}
    return Window(rows / (after.at - before.at), cpu_after - cpu, charged, after.value(ERROR))


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of processor time that they have had."""
    return float(sum(times.user + times.system for times in (process.cpu_times() for process in processes)))


def _share_error(window: Window, weights: Mapping[str, float]) -> float:
    """The largest of any vFM's |share / entitled share - 1|."""
    total, sum_of_weights = sum(window.charged.values()), sum(weights.values())
    return max(abs(window.charged[vfm] / total / (weight / sum_of_weights) - 1) for vfm, weight in weights.items())


def _plain(windows: Mapping[str, Window]) -> dict[str, Any]:
    return {fm: {**vars(window), "charged": dict(window.charged)} for fm, window in windows.items()}
