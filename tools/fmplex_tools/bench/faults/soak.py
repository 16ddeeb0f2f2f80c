"""Everything at once, for an hour: churn, floods, kills, poison, malformed requests, clients that give up.

It is `fmplex bench engine churn` with more going wrong, on one server: every answer of every client, floods included,
is compared with what the version that its ``info`` names answers alone. Beside clients and changes,

1. engines are killed, aborted and stopped, or have a simulated fault;
2. now and then a vFM is asked for far more than its queue holds: what has no room must be told when to come again;
3. a vFM of its own sends a row that ends engines, is quarantined and released, and must be served again (no engine is
   killed until every row that has seen engines die of it is answered: two more that die while such a row, which is
   innocent, is tried alone would convict it);
4. some requests are malformed, and must be told so.

All the while memory, threads, files and segments of shared memory are sampled. They must be flat: see `soak_report`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from rich.progress import Progress

from fmplex_tools.bench.engine.churn import PAUSE, Churn, ChurnPlan
from fmplex_tools.bench.engine.churn_chaos import SPARE_PORTS, Chaos, Placed
from fmplex_tools.bench.engine.churn_check import Checker
from fmplex_tools.bench.engine.churn_client import MOST_ROWS, Caller, Impatience, make_texts
from fmplex_tools.bench.engine.churn_errors import Errors
from fmplex_tools.bench.engine.fleet import copy_fm, fleet_of
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import Arena, serve
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.bench.faults.killer import KINDS, Killer
from fmplex_tools.bench.faults.poison import WORD, token_of
from fmplex_tools.bench.faults.samples import Sampler
from fmplex_tools.bench.faults.simulated import simulated_faults
from fmplex_tools.bench.faults.soak_report import outcome_of
from fmplex_tools.tasks import release_task

POISONED = "poison"
"""Prefix of the name of the vFM whose row ends engines."""
GRACE = 20.0
"""Seconds after a vFM was taken out or put back in which it may be unavailable: engines may die as they load it."""
SERVED_SECONDS = 30.0
"""Within which a vFM must be served that was released from quarantine."""
FLOOD = 150
"""Requests of `MOST_ROWS` rows at once: nearly twice what a vFM's queue holds."""


@dataclass(frozen=True, kw_only=True)
class SoakPlan(ChurnPlan):
    """What is to be tried. Pauses are seconds, at random between two bounds."""

    seconds: float = 3600.0
    clients: int = 8
    word: str = WORD
    """That ends engines: one token of the backbone's, in no other text."""
    kill_every: tuple[float, float] = (4.0, 16.0)
    flood_every: tuple[float, float] = (15.0, 45.0)
    poison_every: tuple[float, float] = (40.0, 80.0)
    malformed_every: tuple[float, float] = (0.5, 3.0)
    sample_every: float = 10.0


@dataclass
class SoakErrors(Errors):
    """Excuses a full queue too, of a vFM that is flooded, where it is told when to come again."""

    grace: float = GRACE
    flooded: dict[str, float] = field(default_factory=dict)
    """vFM → when its last flood was over, on the monotonic clock; infinite while it goes on."""

    def note(self, error: Any, vfm: Placed, impatience: Impatience | None, sent: float) -> None:
        """See `Errors`."""
        full = error.code() is grpc.StatusCode.UNAVAILABLE and "no room for" in error.details()
        if full and "; retry in " in error.details() and sent <= self.flooded.get(vfm.name, 0.0):
            self.allowed["UNAVAILABLE, flooded"] += 1
        else:
            super().note(error, vfm, impatience, sent)


@dataclass
class Soak(Churn):
    """One run under way."""

    plan: SoakPlan
    errors: SoakErrors = field(default_factory=SoakErrors)
    counts: Counter[str] = field(default_factory=Counter)
    """What was done, beside changes and kills."""

    def __post_init__(self) -> None:
        self.killer = Killer(self.made)
        self.sampler = Sampler(self.made, self.plan.sample_every)
        self._calm = asyncio.Lock()
        """Held by who needs engines to die of nothing else."""
        self._poison, self._malformed = self.plan.texts, self.plan.texts + 1
        """Numbers of texts: after those that have references."""
        self._under_way: set[int] = set()
        """Numbers of requests."""

    def jobs(self, end: float) -> list[Coroutine[Any, Any, None]]:
        """See `Churn`."""
        more = (
            self._often(end, self.plan.kill_every, self._kill, 1),
            self._often(end, self.plan.flood_every, self._flood, 2),
            self._often(end, self.plan.poison_every, self._poisoned, 3),
            self._often(end, self.plan.malformed_every, self._malform, 4),
            self._sample(end),
        )
        return [*super().jobs(end), *more]

    async def _often(self, end: float, every: tuple[float, float], act: Any, seed: int) -> None:
        chance = random.Random(1000 * self.plan.seed - seed)
        while (pause := chance.uniform(*every)) < end - time.monotonic():
            await asyncio.sleep(pause)
            await act(chance)

    async def ask(self, vfm: Placed, texts: list[int], impatience: Impatience | None) -> bool:
        """See `Churn`; an answer ends a recovery."""
        sent, number = time.monotonic(), self.asked
        self._under_way.add(number)
        try:
            answered = await super().ask(vfm, texts, impatience)
        finally:
            self._under_way.discard(number)
        if answered:
            self.killer.answered(sent)
        return answered

    def _any_vfm(self, chance: random.Random) -> Placed:
        return self.chaos.vfms[chance.choice(self.names)]

    async def _kill(self, chance: random.Random) -> None:
        async with self._calm:
            kind = list(KINDS)[self.counts["faults of engines"] % len(KINDS)]
            self.counts["faults of engines"] += 1
            fault = asyncio.create_task(self.killer.fault(kind, chance))
            while not fault.done():  # the clients may have stopped: somebody must ask until it is over
                if not await self.ask(self._any_vfm(chance), [0], None):
                    await asyncio.sleep(PAUSE)
            await fault

    async def _flood(self, chance: random.Random) -> None:
        vfm = self._any_vfm(chance)
        self.errors.flooded[vfm.name] = float("inf")
        texts = [[chance.randrange(self.plan.texts) for _ in range(MOST_ROWS)] for _ in range(FLOOD)]
        answered = await asyncio.gather(*(self.ask(vfm, one, None) for one in texts))
        self.errors.flooded[vfm.name] = time.monotonic()
        self.counts["floods"] += 1
        self.counts["requests of floods answered"] += sum(answered)

    async def _malform(self, chance: random.Random) -> None:
        vfm, sent = self._any_vfm(chance), time.monotonic()
        try:
            await self.caller.ask(vfm.name, [self._malformed])
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                self.counts["malformed requests, told so"] += 1
            else:
                self.errors.note(error, vfm, None, sent)
        else:
            self.errors.others["a malformed request was answered"] += 1

    async def _poisoned(self, _: random.Random) -> None:
        name = f"{POISONED}0000"
        async with self._calm:
            try:
                await self.caller.ask(name, [self._poison])
            except grpc.aio.AioRpcError as error:
                if "is quarantined" not in error.details():
                    self.errors.others[f"poison: {error.code().name}: {error.details()}"] += 1
            else:
                self.errors.others["poison was answered"] += 1
            await asyncio.to_thread(release_task, self.made.options.repository, name)
            self.counts["rows that end engines: quarantined, released, served again"] += await self._mended(name)
            suspects = set(self._under_way)
            while suspects & self._under_way:
                await asyncio.sleep(PAUSE)

    async def _mended(self, name: str) -> bool:
        """Whether a good row of it is answered soon."""
        end = time.monotonic() + SERVED_SECONDS
        while time.monotonic() < end:
            try:
                await self.caller.ask(name, [0])
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                return True
        self.errors.others[f"a vFM released from quarantine not served within {SERVED_SECONDS:.0f} s"] += 1
        return False

    async def _sample(self, end: float) -> None:
        while time.monotonic() < end:
            await asyncio.to_thread(self.sampler.take)
            await asyncio.sleep(min(self.plan.sample_every, max(0.0, end - time.monotonic())))


def soak(plan: SoakPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    poison = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed, prefix=POISONED)
    with workplace() as place, simulated_faults(token_of(plan.source, plan.fm, plan.word)):
        line = progress.add_task("starting the server", total=None)
        repository: Path = place / "repository"
        copy_fm(repository, plan.source, plan.fm, plan.settings)
        chaos = Chaos(fleet, repository, place / "beside", plan.vfms, plan.versions, plan.seed)
        chaos.put_all(1)
        poison.write_vfm(repository / poison.name(0), 0, port=plan.vfms + SPARE_PORTS)
        with serve(repository, plan.fm, [*chaos.vfms, poison.name(0)]) as made:
            noted["machine"] = machine(made)
            progress.remove_task(line)
            labels = {name: fleet.labels(vfm.index) for name, vfm in chaos.vfms.items()}
            return asyncio.run(_phases(plan, made, chaos, progress, labels))


async def _phases(
    plan: SoakPlan, made: Arena, chaos: Chaos, progress: Progress, labels: dict[str, tuple[str, ...]]
) -> Outcome:
    texts = make_texts(plan.texts, plan.seed)
    async with Caller(made.url, [*texts, f"{texts[0]} {plan.word}", " "]) as caller:
        run = Soak(plan, made, chaos, caller, progress, Checker({}, labels))
        first = await run.record("references before")
        run.checker.references = first
        await run.load()
        last = await run.record("references after")
    return outcome_of(run, first, last)
