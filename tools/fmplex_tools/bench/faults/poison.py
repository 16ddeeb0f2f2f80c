"""One vFM whose rows end every engine that runs them: what do the others notice?

1. Quiet: the others are asked at a steady pace, each request at a time of its own, whatever the answers do.
2. Poison: the same, and one vFM asks twice a second with a row that ends the engine. It must be found, quarantined and
   told so, and no request of another may fail.
3. Mended: its files are written again and it asks with good rows; it must be served.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from rich.progress import Progress
from tokenizers import Tokenizer

from fmplex_backend.backbones.source import resolve
from fmplex_backend.errors import EngineFailure
from fmplex_backend.repository.config import fm_settings
from fmplex_tools.bench.engine.churn_client import Caller, make_texts
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import Arena, serve
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.simulated import simulated_faults
from fmplex_tools.tasks import release_task
from fmplex_tools.top.scrape import scrape

WORD = "poison"
POISON_EVERY = 0.5
P99_GOAL = 1.5
WARM = 3.0
"""Seconds of each phase that do not count in its latencies, but for failures."""
SERVED_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PoisonPlan(FleetBase):
    """What is to be tried; ``seconds`` of poison, and a third of it before without."""

    seconds: float = 300.0
    vfms: int = 32
    word: str = WORD
    """That ends engines: one token of the backbone's, in no other text."""
    rate: float = 20.0
    """Requests a second to all the others together, one row each."""


@dataclass
class Asked:
    """What became of one phase's requests."""

    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    poisoned: Counter[str] = field(default_factory=Counter)
    """How requests of the offender ended: code and the beginning of the message."""

    @property
    def p99(self) -> float:
        """Seconds."""
        return float(np.percentile(self.latencies, 99))


async def _phase(plan: PoisonPlan, caller: Caller, names: list[str], seconds: float, bad: int | None) -> Asked:
    """``bad``: the number of the text that the first of ``names`` sends; None where it sends nothing."""
    asked, begun, chance = Asked(), time.monotonic(), random.Random(plan.seed)

    async def ask(name: str, due: float) -> None:
        try:
            await caller.ask(name, [chance.randrange(bad or 8)])
        except grpc.aio.AioRpcError as error:
            asked.failures[f"{name}: {error.code().name}: {error.details()}"] += 1
        else:
            if due > begun + WARM:
                asked.latencies.append(time.monotonic() - due)

    async def poison() -> None:
        try:
            await caller.ask(names[0], [bad or 0])
        except grpc.aio.AioRpcError as error:
            told = "quarantined" if "is quarantined" in error.details() else error.details()
            asked.poisoned[f"{error.code().name}: {told}"] += 1
        else:
            asked.poisoned["answered"] += 1

    tasks, due, next_poison = [], begun, begun + WARM
    while due < begun + seconds:
        due += chance.expovariate(plan.rate)
        if bad is not None and due > next_poison:
            tasks.append(asyncio.create_task(poison()))
            next_poison += POISON_EVERY
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(chance.choice(names[1:]), due)))
    await asyncio.gather(*tasks)
    return asked


def token_of(source: Path, fm: str, word: str) -> int:
    """The number of the token that is ``word`` alone. Raises `EngineFailure` where there is none."""
    backbone = Path(resolve(fm_settings(source / fm).backbone))
    token: int | None = Tokenizer.from_file(str(backbone / "tokenizer.json")).token_to_id(word)
    if token is None:
        raise EngineFailure(f"the backbone's tokenizer has no token {word!r}")
    return token


def poison(plan: PoisonPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    with workplace() as place, simulated_faults(token_of(plan.source, plan.fm, plan.word)):
        line = progress.add_task("starting the server", total=None)
        names = make_fleet(place / "fleet", plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed)
        with serve(place / "fleet", plan.fm, names) as made:
            noted["machine"] = machine(made)
            progress.update(line, description="quiet, poison, mended")
            outcome = asyncio.run(_phases(plan, made, names))
            progress.remove_task(line)
            return outcome


async def _phases(plan: PoisonPlan, made: Arena, names: list[str]) -> Outcome:
    texts = make_texts(8, plan.seed)
    async with Caller(made.url, [*texts, f"{texts[2]} {plan.word}"]) as caller:
        quiet = await _phase(plan, caller, names, plan.seconds / 3, None)
        before = await asyncio.to_thread(_deaths, made)
        during = await _phase(plan, caller, names, plan.seconds, len(texts))
        deaths = await asyncio.to_thread(_deaths, made) - before
        record = await asyncio.to_thread(_record, made, names[0])
        await asyncio.to_thread(release_task, made.options.repository, names[0])
        mended = await _mended(made, caller, names[0])
    part = f"poison from one of {plan.vfms} vFMs for {plan.seconds:.0f} s"
    failed, ratio = during.failures.total(), during.p99 / quiet.p99
    named = record["state"] == "quarantined" and names[0] in str(record["reason"])
    figures = [
        Figure(
            part, f"of {len(during.latencies) + failed:,} requests of the others, failed", failed, "", "0", not failed
        ),
        Figure(part, "the others' p99", 1e3 * during.p99, f"ms, quiet {1e3 * quiet.p99:.0f}"),
        Figure(part, "ratio", ratio, "×", f"≤ {P99_GOAL:g}×", ratio <= P99_GOAL),
        Figure(part, "engines that died", deaths),
        Figure(part, "the offender is named and in quarantine", float(named), "", "1", named),
        Figure(part, "the offender is served again once its files were written", mended, "s after", "", mended < 30),
    ]
    figures += [Figure("the offender's requests", what, count) for what, count in during.poisoned.most_common(4)]
    figures += [Figure("failed", what, count) for what, count in during.failures.most_common(4)]
    return Outcome(figures, {"poisoned": dict(during.poisoned), "failures": dict(during.failures)})


async def _mended(made: Arena, caller: Caller, name: str) -> float:
    """Seconds until a good row of it is answered."""
    begun = time.monotonic()
    while time.monotonic() < begun + SERVED_SECONDS:
        try:
            await caller.ask(name, [1])
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)
        else:
            break
    return time.monotonic() - begun


def _record(made: Arena, name: str) -> dict[str, Any]:
    return next(vfm for vfm in made.status()["vfms"] if vfm["name"] == name)


def _deaths(made: Arena) -> int:
    return int(scrape(f"http://{made.options.metrics}/metrics")[made.fm].own.get("fmplex_engine_deaths_total"))
