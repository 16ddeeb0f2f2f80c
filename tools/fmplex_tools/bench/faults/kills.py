"""Engines that are killed under load, in every way there is: does a client get an error, or a wrong answer?

1. What each vFM answers to fixed texts is recorded.
2. Clients ask all vFMs in a closed loop; every answer is compared with what was recorded. Meanwhile one engine after
   the other is killed, aborted, stopped, or has a simulated fault. Only answers count: any error is a failure.
3. A fault's recovery is over when a request that was sent after it is answered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from rich.progress import Progress

from fmplex_tools.bench.engine.churn_check import Checker
from fmplex_tools.bench.engine.churn_client import MOST_ROWS, Caller, make_texts
from fmplex_tools.bench.engine.fleet import FleetBase, fleet_of, make_fleet
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import Arena, serve
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.killer import KINDS, Killer
from fmplex_tools.bench.faults.simulated import simulated_faults

REST = (0.5, 2.0)
"""Seconds between a recovery and the next fault, at random between these."""


@dataclass(frozen=True, kw_only=True)
class KillsPlan(FleetBase):
    """What is to be tried."""

    kills: int = 200
    vfms: int = 32
    texts: int = 12
    clients: int = 16
    threads: int = 0
    """Of the engine; 0 is every core."""


@dataclass
class Kills:
    """One run under way."""

    plan: KillsPlan
    made: Arena
    caller: Caller
    checker: Checker
    names: list[str]
    killer: Killer
    failures: Counter[str] = field(default_factory=Counter)

    async def record(self) -> None:
        """What every vFM answers."""
        known = {}
        for name in self.names:
            answers = [await self.caller.ask(name, [text]) for text in range(self.plan.texts)]
            known[name, 1] = np.concatenate([answer.logits for answer in answers])
        self.checker.references = known

    async def run(self, progress: Progress) -> None:
        """Kill engines under load."""
        line = progress.add_task("kills", total=self.plan.kills)
        stop = asyncio.Event()
        clients = [asyncio.create_task(self._client(number, stop)) for number in range(self.plan.clients)]
        chance = random.Random(self.plan.seed)
        try:
            for number in range(self.plan.kills):
                await asyncio.sleep(chance.uniform(*REST))
                self.made.check()
                await self.killer.fault(list(KINDS)[number % len(KINDS)], chance)
                progress.update(line, advance=1, description=f"kills: {self.checker.rows:,} rows checked")
        finally:
            stop.set()
            await asyncio.gather(*clients)
            progress.remove_task(line)

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        chance = random.Random(1000 * self.plan.seed + number)
        while not stop.is_set():
            name = chance.choice(self.names)
            texts = [chance.randrange(self.plan.texts) for _ in range(chance.randint(1, MOST_ROWS))]
            sent = time.monotonic()
            try:
                self.checker.check(await self.caller.ask(name, texts))
            except grpc.aio.AioRpcError as error:
                self.failures[f"{error.code().name}: {error.details()}"] += 1
                await asyncio.sleep(0.1)
            else:
                self.killer.answered(sent)


def kills(plan: KillsPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    with workplace() as place, simulated_faults(0):
        line = progress.add_task("starting the server", total=None)
        folder = place / "fleet"
        settings = {"threads": str(plan.threads)}
        names = make_fleet(folder, plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed, settings=settings)
        with serve(folder, plan.fm, names) as made:
            noted["machine"] = machine(made)
            progress.remove_task(line)
            labels = {name: fleet.labels(index) for index, name in enumerate(names)}
            return asyncio.run(_run(plan, made, names, labels, progress))


async def _run(
    plan: KillsPlan, made: Arena, names: list[str], labels: Mapping[str, tuple[str, ...]], progress: Progress
) -> Outcome:
    async with Caller(made.url, make_texts(plan.texts, plan.seed)) as caller:
        run = Kills(plan, made, caller, Checker({}, labels), names, Killer(made))
        await run.record()
        await run.run(progress)
    return _outcome(run)


def _outcome(run: Kills) -> Outcome:
    checker, part = run.checker, f"{run.plan.kills} faults under load on {run.plan.vfms} vFMs"
    failed = run.failures.total()
    figures = [
        Figure(part, f"rows checked, of {checker.requests:,} requests", checker.rows),
        Figure(part, "requests answered wrongly", checker.wrong, "", "0", checker.wrong == 0),
        Figure(part, "requests failed", failed, "", "0", failed == 0),
        *run.killer.figures(),
    ]
    figures += [Figure("failed", what, count) for what, count in run.failures.most_common(5)]
    return Outcome(
        figures, {"wrong": checker.details, "failures": dict(run.failures), "recoveries": run.killer.recoveries}
    )
