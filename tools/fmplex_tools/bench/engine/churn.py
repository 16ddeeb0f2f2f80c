"""Is every answer right while everything changes? A correctness test under load, like a day of bad luck in minutes.

1. Two identical reference phases: each version of each vFM is published, and answers fixed texts one at a time. Both
   phases must agree, and versions must differ clearly.
2. Clients ask all vFMs, more than there are adapter slots, in a closed loop; some give up. Meanwhile versions are
   published and rolled back, vFMs removed and put back on other ports, weights edited. Every answer must be that of
   the version and the vFM that its ``info`` names (`churn_check`).
3. The reference phase again: nothing has been left behind.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.engine.churn_chaos import Chaos, Placed
from fmplex_tools.bench.engine.churn_check import (
    TOLERANCE,
    Answer,
    Checker,
    Key,
    Logits,
    References,
    largest_difference,
    least_distance,
)
from fmplex_tools.bench.engine.churn_client import (
    MOST_ROWS,
    Caller,
    GaveUp,
    Impatience,
    draw_impatience,
    make_texts,
)
from fmplex_tools.bench.engine.churn_errors import WHILE_CHANGING, Errors
from fmplex_tools.bench.engine.fleet import FleetPlan, copy_fm, fleet_of
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import Arena, serve, wait_served
from fmplex_tools.bench.fair.bench import Figure, Outcome

CHANGE_EVERY = (0.1, 0.7)
"""Seconds between changes, at random between these."""
PAUSE = 0.02
APART = 10
"""Times the tolerance: how far the answers of two versions must lie apart."""
SERVED_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ChurnPlan(FleetPlan):
    """What is to be tried; ``seconds`` are of the load, the reference phases come on top."""

    seconds: float = 600.0
    slots: int = 8
    vfms: int = 24
    versions: int = 3
    """Of each vFM."""
    texts: int = 12
    clients: int = 16
    memory_mb: int = 2
    """Host memory for adapters: so little that some must be read from disk again."""

    @property
    def settings(self) -> dict[str, str]:
        """Parameters of the physical FM."""
        return {
            "dtype": "fp32",
            "threads": str(self.threads),
            "adapter_slots": str(self.slots),
            "adapter_memory_mb": str(self.memory_mb),
        }


@dataclass
class Churn:
    """One run under way."""

    plan: ChurnPlan
    made: Arena
    chaos: Chaos
    caller: Caller
    progress: Progress
    checker: Checker
    errors: Errors = field(default_factory=Errors)
    asked: int = 0
    stale: float = 0.0
    """The longest that a version answered a request which was sent after it had been replaced, in seconds."""

    @property
    def names(self) -> Sequence[str]:
        """Of the vFMs."""
        return list(self.chaos.vfms)

    async def record(self, title: str) -> dict[Key, Logits]:
        """A reference phase: every version of every vFM, one row at a time."""
        found: dict[Key, Logits] = {}
        line = self.progress.add_task(title, total=self.plan.versions * len(self.names))
        for version in range(1, self.plan.versions + 1):
            await asyncio.to_thread(self.chaos.put_all, version)
            await asyncio.to_thread(self._wait_version, version)
            for name in self.names:
                answers = [await self._patiently(name, text) for text in range(self.plan.texts)]
                if wrong := {str(a.infos) for a in answers if _told(a) != {(name, version)}}:
                    raise EngineFailure(f"asked {name!r}, whose version {version} is served: answered by {min(wrong)}")
                found[name, version] = np.concatenate([answer.logits for answer in answers])
                self.progress.advance(line)
        self.progress.remove_task(line)
        return found

    async def _patiently(self, name: str, text: int) -> Answer:
        """Triton takes a moment longer than the host to see a change."""
        end = time.monotonic() + SERVED_SECONDS
        while True:
            try:
                return await self.caller.ask(name, [text])
            except grpc.aio.AioRpcError as error:
                if error.code() not in WHILE_CHANGING or time.monotonic() > end:
                    raise EngineFailure(f"{name!r}: {error.code().name}: {error.details()}") from None
            await asyncio.sleep(PAUSE)

    def _wait_version(self, version: int) -> None:
        end = time.monotonic() + SERVED_SECONDS
        wait_served(self.made, self.names)
        while True:
            there = {vfm["name"]: vfm for vfm in self.made.status()["vfms"]}
            late = [name for name in self.names if there.get(name, {}).get("version") != version]
            if not late:
                return
            if time.monotonic() > end:
                raise EngineFailure(f"{late[0]!r}: version {version} was published; the host says {there.get(late[0])}")
            time.sleep(0.1)

    async def load(self) -> None:
        """Clients and changes, for the plan's seconds."""
        line = self.progress.add_task("load and changes", total=self.plan.seconds)
        begun = time.monotonic()
        end = begun + self.plan.seconds
        tasks = [asyncio.create_task(job) for job in self.jobs(end)]
        try:
            while (now := time.monotonic()) < end and not any(task.done() for task in tasks):
                self.made.check()
                self.progress.update(line, completed=now - begun, description=self._told())
                await asyncio.sleep(0.25)
            self.progress.update(line, description="waiting for the last answers")
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self.progress.remove_task(line)

    def jobs(self, end: float) -> list[Coroutine[Any, Any, None]]:
        """What goes on at a time until ``end``, on the monotonic clock."""
        return [*(self._client(number, end) for number in range(self.plan.clients)), self._change(end)]

    def _told(self) -> str:
        return f"load and changes: {self.checker.rows:,} rows checked, {self.checker.wrong} requests wrong"

    async def _change(self, end: float) -> None:
        chance = random.Random(self.plan.seed + 1)
        while time.monotonic() < end:
            await asyncio.to_thread(self.chaos.step)
            await asyncio.sleep(chance.uniform(*CHANGE_EVERY))

    async def _client(self, number: int, end: float) -> None:
        chance = random.Random(1000 * self.plan.seed + number)
        while time.monotonic() < end:
            vfm = self.chaos.vfms[chance.choice(self.names)]
            texts = [chance.randrange(self.plan.texts) for _ in range(chance.randint(1, MOST_ROWS))]
            if not await self.ask(vfm, texts, draw_impatience(chance)):
                await asyncio.sleep(PAUSE)

    async def ask(self, vfm: Placed, texts: list[int], impatience: Impatience | None) -> bool:
        """One request; whether it was answered, rightly or not."""
        self.asked += 1
        sent = time.monotonic()
        try:
            answer = await self.caller.ask(vfm.name, texts, impatience)
        except GaveUp:
            self.errors.allowed["gave up by cancel"] += 1
            return False
        except grpc.aio.AioRpcError as error:
            self.errors.note(error, vfm, impatience, sent)
            return False
        if self.checker.check(answer):
            self.stale = max(self.stale, vfm.stale_seconds(answer.infos[0]["version"], sent))
        return True


def _told(answer: Answer) -> set[tuple[str, int]]:
    return {(info["vfm"], info["version"]) for info in answer.infos}


def churn(plan: ChurnPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    with workplace() as place:
        line = progress.add_task("starting the server", total=None)
        copy_fm(place / "repository", plan.source, plan.fm, plan.settings)
        chaos = Chaos(fleet, place / "repository", place / "beside", plan.vfms, plan.versions, plan.seed)
        chaos.put_all(1)
        with serve(place / "repository", plan.fm, list(chaos.vfms)) as made:
            noted["machine"] = machine(made)
            progress.remove_task(line)
            labels = {name: fleet.labels(vfm.index) for name, vfm in chaos.vfms.items()}
            return asyncio.run(_phases(plan, made, chaos, progress, labels))


async def _phases(
    plan: ChurnPlan, made: Arena, chaos: Chaos, progress: Progress, labels: dict[str, tuple[str, ...]]
) -> Outcome:
    async with Caller(made.url, make_texts(plan.texts, plan.seed)) as caller:
        run = Churn(plan, made, chaos, caller, progress, Checker({}, labels))
        first = await run.record("reference, first time")
        second = await run.record("reference, second time")
        run.checker.references = first
        await run.load()
        last = await run.record("reference, after the load")
    return outcome_of(run, first, second, last)


def outcome_of(run: Churn, first: References, second: References, last: References) -> Outcome:
    """Figures and their goals."""
    checker, errors = run.checker, run.errors
    tolerance = f"≤ {TOLERANCE:g}"
    agree, again, apart = largest_difference(first, second), largest_difference(first, last), least_distance(first)
    references, load = "references", "under load"
    others, changes = errors.others.total(), sum(run.chaos.counts.values())
    unseen = len(first.keys() - checker.by_version.keys())
    figures = [
        Figure(references, "answers recorded, each time", sum(len(known) for known in first.values())),
        Figure(references, "second time, largest difference", agree, "", tolerance, agree <= TOLERANCE),
        Figure(references, "after the load, largest difference", again, "", tolerance, again <= TOLERANCE),
        Figure(references, "any two versions apart", apart, "", f"≥ {APART * TOLERANCE:g}", apart >= APART * TOLERANCE),
        Figure(load, f"rows checked, of {checker.requests:,} requests", checker.rows),
        Figure(load, "requests answered wrongly", checker.wrong, "", "0", checker.wrong == 0),
        Figure(
            load, "largest deviation of the others", checker.deviation, "", tolerance, checker.deviation <= TOLERANCE
        ),
        Figure(load, "requests failed without excuse", others, "", "0", others == 0),
        Figure(load, f"versions never seen, of {len(first)}", unseen),
        Figure(load, "a replaced version answered for, longest", run.stale, "s"),
    ]
    figures += [Figure("failed", kind, count) for kind, count in sorted(errors.allowed.items())]
    figures += [Figure("failed without excuse", kind, count) for kind, count in sorted(errors.others.items())]
    figures += [Figure(f"{changes} changes", what, count) for what, count in sorted(run.chaos.counts.items())]
    details = {
        "wrong": checker.details + errors.messages,
        "allowed": dict(errors.allowed),
        "others": dict(errors.others),
        "changes": dict(run.chaos.counts),
        "asked": run.asked,
        "rows": checker.rows,
    }
    return Outcome(figures, details)
