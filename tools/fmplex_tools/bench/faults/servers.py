"""Hosts and tritonservers that are killed under the load of our own client: does a request get lost?

`fmplex serve` runs over a fleet; clients of `fmplex_client` ask all vFMs one after the other. By turns the host of the
physical FM and tritonserver itself are killed. A request is lost that has no right answer within its timeout.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_client import Client, FMplexClientError
from fmplex_tools.bench.engine.churn_check import TOLERANCE
from fmplex_tools.bench.engine.churn_client import make_texts
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.server.process import free_ports
from fmplex_tools.serving import fetch_status

START_SECONDS = 240.0
REQUEST_SECONDS = 120.0
"""Timeout of a request: longer than any start."""
REST = (1.0, 4.0)
"""Seconds between serving again and the next kill, at random between these."""
VICTIMS = ("host", "tritonserver")


@dataclass(frozen=True, kw_only=True)
class ServersPlan(FleetBase):
    """What is to be tried."""

    kills: int = 40
    """Of hosts and tritonservers together, by turns."""
    vfms: int = 8
    texts: int = 6
    clients: int = 8


@dataclass
class Servers:
    """One run under way."""

    plan: ServersPlan
    http: str
    names: list[str]
    texts: list[str]
    known: dict[tuple[str, int], np.ndarray[Any, Any]] = field(default_factory=dict)
    answered: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    """Seconds of the slowest request."""
    back: dict[str, list[float]] = field(default_factory=dict)
    """Victim → seconds from each kill until a request was answered that was sent after it."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _killed: float | None = None
    _served: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: Client, name: str, text: int) -> np.ndarray[Any, Any]:
        """The logits."""
        [answer] = client.predict(name, [self.texts[text]])
        return np.asarray(answer.logits)

    def record(self) -> None:
        """What every vFM answers."""
        with Client(self.http, timeout=REQUEST_SECONDS) as client:
            for name, text in itertools.product(self.names, range(len(self.texts))):
                self.known[name, text] = self.ask(client, name, text)

    def load(self, number: int, stop: threading.Event) -> None:
        """One client, until ``stop`` is set."""
        chance = random.Random(1000 * self.plan.seed + number)
        with Client(self.http, timeout=REQUEST_SECONDS) as client:
            while not stop.is_set():
                name, text = chance.choice(self.names), chance.randrange(len(self.texts))
                sent = time.monotonic()
                try:
                    found = self.ask(client, name, text)
                except FMplexClientError as error:
                    with self._lock:
                        self.lost[f"{type(error).__name__}: {error}"] += 1
                    continue
                now = time.monotonic()
                with self._lock:
                    self.answered += 1
                    self.wrong += float(np.abs(found - self.known[name, text]).max()) > TOLERANCE
                    self.longest = max(self.longest, now - sent)
                    if self._killed is not None and sent > self._killed:
                        self._served.set()

    def kill(self, victim: str, server: psutil.Process) -> None:
        """Kill it, and wait until it serves again. Raises `EngineFailure` where it does not."""
        process = self._victim(victim, server)
        with self._lock:
            self._served.clear()
            self._killed = time.monotonic()
        process.kill()
        if not self._served.wait(START_SECONDS):
            raise EngineFailure(f"{victim} was killed, and nothing serves after {START_SECONDS:.0f} s")
        self.back.setdefault(victim, []).append(time.monotonic() - self._killed)

    def _victim(self, victim: str, server: psutil.Process) -> psutil.Process:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(FMplexError, psutil.NoSuchProcess, StopIteration):
                if victim == "host":
                    return psutil.Process(fetch_status(self.http, self.plan.fm)["host_pid"])
                return next(child for child in server.children() if child.name() == "tritonserver")
            time.sleep(0.1)
        raise EngineFailure(f"there is no {victim} to kill")


@contextlib.contextmanager
def _serve(repository: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`fmplex serve` in a process of its own: HTTP ``host:port``, and the process."""
    ports = free_ports(3)
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    log = repository.parent / "serve.log"
    command = [sys.executable, "-m", "fmplex_tools.cli", "serve", "-r", str(repository), "--log-file", f"{log}.triton"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *itertools.chain(*options)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + START_SECONDS
        while "ready in" not in log.read_text(encoding="utf-8"):
            if process.poll() is not None or time.monotonic() > end:
                raise EngineFailure(f"fmplex serve does not come up:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        yield f"127.0.0.1:{ports[0]}", psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def servers(plan: ServersPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it; what the machine is goes into ``noted``."""
    with workplace() as place:
        line = progress.add_task("starting the server", total=plan.kills)
        names = make_fleet(place / "fleet", plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed)
        with _serve(place / "fleet") as (http, process):
            noted["machine"] = fetch_status(http, plan.fm)["cost_model"]["device"]
            run = Servers(plan, http, names, make_texts(plan.texts, plan.seed))
            run.record()
            _kill_all(run, process, lambda done: progress.update(line, completed=done, description="kills"))
        progress.remove_task(line)
    return _outcome(run)


def _kill_all(run: Servers, process: psutil.Process, tell: Any) -> None:
    stop, chance = threading.Event(), random.Random(run.plan.seed)
    clients = [threading.Thread(target=run.load, args=(number, stop)) for number in range(run.plan.clients)]
    for client in clients:
        client.start()
    try:
        for number in range(run.plan.kills):
            time.sleep(chance.uniform(*REST))
            run.kill(VICTIMS[number % len(VICTIMS)], process)
            tell(number + 1)
    finally:
        stop.set()
        for client in clients:
            client.join()


def _outcome(run: Servers) -> Outcome:
    lost, part = run.lost.total(), f"{run.plan.kills} kills under the load of {run.plan.clients} clients"
    figures = [
        Figure(part, "requests answered", run.answered),
        Figure(part, "lost", lost, "", "0", lost == 0),
        Figure(part, "answered wrongly", run.wrong, "", "0", run.wrong == 0),
        Figure(part, "slowest request", run.longest, "s"),
    ]
    for victim, seconds in run.back.items():
        told = f"s (p50; longest {max(seconds):.1f}, {len(seconds)} times)"
        figures.append(Figure("serves again after", victim, float(np.median(seconds)), told))
    figures += [Figure("lost", what, count) for what, count in run.lost.most_common(4)]
    return Outcome(figures, {"lost": dict(run.lost), "back": run.back})
