"""Malformed requests to a real server, over HTTP and gRPC: does it crash, hang, leak, or answer good ones wrongly?

1. What each vFM answers to fixed texts is recorded.
2. A part of the requests warms up: caches, arenas and threads come to what they stay at. Then memory, threads, open
   files and shared memory of every process are noted.
3. The others are sent, each kind as likely as any other of its protocol. Every `CHECKED_EVERY` requests a client asks
   for something good on the connection that it sends the others on, and over gRPC, and both answers are checked.
4. After a rest the same is noted again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from rich.progress import Progress

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.engine.churn_check import Answer, Checker
from fmplex_tools.bench.engine.churn_client import Caller, make_texts
from fmplex_tools.bench.engine.fleet import FleetBase, fleet_of, make_fleet
from fmplex_tools.bench.engine.fleet_server import machine, workplace
from fmplex_tools.bench.fair.arena import Arena, serve
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.footprint import Footprint, growth
from fmplex_tools.bench.faults.malformed_clients import RawGrpc, Sent, Wire, send_http
from fmplex_tools.bench.faults.malformed_grpc import GRPC_KINDS
from fmplex_tools.bench.faults.malformed_http import HTTP_KINDS, good_body, path_of, post

CHECKED_EVERY = 50
"""Requests of a client between two good ones."""
LEFT_OUT: Mapping[str, str] = {
    "HTTP, compressed": "Triton 2.51 keeps what it has unpacked of a request that then fails (its pull request 8764)",
    "HTTP, too deep": "Triton 2.51 ends with SIGSEGV at 100,000 brackets, which it reads by recursion",
    "HTTP, too many chunks": "Triton 2.51 ends with SIGSEGV, since its stack has a place for each (CVE-2025-23310)",
}
"""Kinds that are only sent where they are asked for, and why."""
WARM_PART = 0.2


@dataclass(frozen=True, kw_only=True)
class MalformedPlan(FleetBase):
    """What is to be tried."""

    requests: int = 100_000
    vfms: int = 8
    texts: int = 6
    clients: int = 4
    """Of each protocol, each in a closed loop."""
    rest: float = 3.0
    """Seconds before the processes are looked at."""
    kinds: Sequence[str] = ()
    """Those whose name begins with one of these; none is all but `LEFT_OUT`."""


@dataclass
class Malformed:
    """One run under way."""

    plan: MalformedPlan
    made: Arena
    caller: Caller
    checker: Checker
    names: list[str]
    texts: list[str]
    sent: Sent = field(default_factory=Sent)
    failed: dict[str, int] = field(default_factory=dict)
    """Good requests that had no answer, by how they ended."""

    async def record(self) -> None:
        """What every vFM answers."""
        known = {}
        for name in self.names:
            answers = [await self.caller.ask(name, [text]) for text in range(len(self.texts))]
            known[name, 1] = np.concatenate([answer.logits for answer in answers])
        self.checker.references = known

    async def send(self, until: int, seed: int, progress: Progress, line: Any) -> None:
        """Send until so many were sent in all; stops where the server has ended."""
        kinds = {protocol: self._kinds(protocol) for protocol in ("HTTP", "gRPC")}
        clients = [
            asyncio.create_task(client(until, kinds[protocol], random.Random(f"{seed} {number} {protocol}")))
            for number in range(self.plan.clients)
            for protocol, client in (("HTTP", self._http), ("gRPC", self._grpc))
            if kinds[protocol]
        ]
        while (pending := [client for client in clients if not client.done()]) and self._alive():
            await asyncio.wait(pending, timeout=0.5)
            progress.update(line, completed=self.sent.count)
        for client in clients:
            client.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(ended, Exception) and self._alive():
                raise ended

    def _kinds(self, protocol: str) -> list[str]:
        chosen = tuple(self.plan.kinds)
        known = HTTP_KINDS if protocol == "HTTP" else GRPC_KINDS
        if not chosen:
            return [kind for kind in known if f"{protocol}, {kind}" not in LEFT_OUT]
        return [kind for kind in known if f"{protocol}, {kind}".startswith(chosen)]

    def _alive(self) -> bool:
        try:
            self.made.check()
        except EngineFailure:
            return False
        return True

    async def _http(self, until: int, kinds: Sequence[str], chance: random.Random) -> None:
        wire = Wire(self.made.options.http)
        turn = 0
        while self.sent.count < until:
            turn += 1
            name, text = chance.choice(self.names), chance.randrange(len(self.texts))
            await send_http(wire, self.sent, kinds, name, self.texts[text], chance)
            if turn % CHECKED_EVERY == 0:
                await self._good_http(wire, name, text)
        await wire.close()

    async def _good_http(self, wire: Wire, name: str, text: int) -> None:
        """On the same connection, where it is still open."""
        request = post(path_of(name), json.dumps(good_body(self.texts[text])).encode())
        try:
            answer = await wire.ask(request) or await wire.ask(request)  # the server may just have closed it
        except asyncio.TimeoutError:
            answer = (0, b"no answer")
        if answer is None or answer[0] != 200:
            self._fail(f"HTTP: {answer}")
            return
        outputs = {output["name"]: output for output in json.loads(answer[1])["outputs"]}
        logits = np.array(outputs["logits"]["data"], np.float32).reshape(outputs["logits"]["shape"])
        info = json.loads(outputs["info"]["data"][0])
        label = self.checker.labels[name][int(logits[0].argmax())]
        self.checker.check(Answer(name, (text,), logits, (label,), (info,)))

    async def _grpc(self, until: int, kinds: Sequence[str], chance: random.Random) -> None:
        async with RawGrpc(self.made.url) as raw:
            turn = 0
            while self.sent.count < until:
                turn += 1
                name, text = chance.choice(self.names), chance.randrange(len(self.texts))
                await raw.send(self.sent, kinds, name, self.texts[text], chance)
                if turn % CHECKED_EVERY == 0:
                    await self._good_grpc(name, text)

    async def _good_grpc(self, name: str, text: int) -> None:
        try:
            self.checker.check(await self.caller.ask(name, [text]))
        except grpc.aio.AioRpcError as error:
            self._fail(f"gRPC: {error.code().name}: {error.details()}")

    def _fail(self, how: str) -> None:
        self.failed[how] = self.failed.get(how, 0) + 1


def malformed(plan: MalformedPlan, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it on a server of its own; what the machine is goes into ``noted``."""
    fleet = fleet_of(plan.source, plan.fm, rank=plan.rank, seed=plan.seed)
    with workplace() as place:
        line = progress.add_task("starting the server", total=None)
        names = make_fleet(place / "fleet", plan.source, plan.fm, plan.vfms, rank=plan.rank, seed=plan.seed)
        with serve(place / "fleet", plan.fm, names) as made:
            noted["machine"] = machine(made)
            progress.update(line, description="malformed requests", total=plan.requests)
            labels = {name: fleet.labels(index) for index, name in enumerate(names)}
            outcome = asyncio.run(attack(plan, made, labels, progress, line))
            progress.remove_task(line)
            return outcome


async def attack(
    plan: MalformedPlan, made: Arena, labels: Mapping[str, Sequence[str]], progress: Progress, line: Any
) -> Outcome:
    """Send what ``plan`` says to the vFMs of ``labels``, which classify into these; ``line`` is told how many."""
    texts = make_texts(plan.texts, plan.seed)
    async with Caller(made.url, texts) as caller:
        run = Malformed(plan, made, caller, Checker({}, labels), list(labels), texts)
        await run.record()
        await run.send(int(plan.requests * WARM_PART), 2 * plan.seed, progress, line)
        before = await _footprint(run)
        warm = run.sent.count
        await run.send(plan.requests, 2 * plan.seed + 1, progress, line)
        after = await _footprint(run)
    return _outcome(run, before, after, run.sent.count - warm)


async def _footprint(run: Malformed) -> Footprint | None:
    """After a rest; None where the server has ended."""
    await asyncio.sleep(run.plan.rest)
    return await asyncio.to_thread(Footprint.of, run.made) if run._alive() else None


def _outcome(run: Malformed, before: Footprint | None, after: Footprint | None, counted: int) -> Outcome:
    sent, checker, plan = run.sent, run.checker, run.plan
    part = f"{sent.count:,} malformed requests from {plan.clients} clients of each protocol"
    crashed = before is None or after is None or before.memory.keys() != after.memory.keys()
    failed = sum(run.failed.values())
    figures = [
        Figure(part, "servers, hosts and engines that crashed", float(crashed), "", "0", not crashed),
        Figure(part, "without answer, the connection open", sent.hangs, "", "0", not sent.hangs),
        Figure(part, f"of {checker.requests + failed:,} good ones between them, failed", failed, "", "0", not failed),
        Figure(part, "… answered wrongly", checker.wrong, "", "0", not checker.wrong),
    ]
    if before is not None and after is not None and not crashed:
        figures += growth(f"left behind by the last {counted:,}, after {WARM_PART:.0%} of all", before, after, counted)
    totals: Counter[str] = sum(sent.ends.values(), Counter())
    figures += [Figure("how they ended", end, count) for end, count in totals.most_common()]
    details = {
        "ends": {kind: dict(ends.most_common()) for kind, ends in sorted(sent.ends.items())},
        "failed": run.failed,
        "wrong": checker.details,
        "last": list(sent.last) if crashed else [],
        "memory": [footprint.memory for footprint in (before, after) if footprint is not None],
    }
    return Outcome(figures, details)
