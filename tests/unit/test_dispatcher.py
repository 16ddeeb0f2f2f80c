"""The dispatcher with an engine that dies, hangs, lies and refuses: every request is answered exactly once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.fake_engine import FakeEngine, answer_all, dies_on
from support.live import wait_for

from fmplex_backend.calibration.fit import Fit
from fmplex_backend.errors import DeadlineExceeded, EngineFailure, FMplexError, Quarantined, Unavailable
from fmplex_backend.host import dispatcher, lane
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.lane import MAX_DEATHS
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.requests import Ask, Member, Pending, RowTask
from fmplex_backend.messages import BatchDone, DropGeneration, LoadGeneration, Point, Pong, RunBatch
from fmplex_backend.repository.artifact import Artifact, BackboneRef
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fifo import FifoQueue
from fmplex_backend.scheduling.interface import QueueFull, Row, VfmPolicy

ARTIFACT = Artifact(kind="regression", backbone=BackboneRef(name="t", fingerprint="sha256:" + "0" * 64))


class Host:
    """What is around a dispatcher: vFMs, requests, and the replies that were made."""

    def __init__(
        self,
        folder: Path,
        engines: list[FakeEngine],
        max_batch_rows: int = 4,
        *,
        ahead: bool = False,
        hang_seconds: float = 60,
    ) -> None:
        self.folder, self.engines = folder, engines
        self.replies: list[Pending] = []
        self.log: list[str] = []
        queue = FifoQueue(max_batch_rows, CostModel(alpha=1e-3, beta=1e-5))
        self.dispatcher = Dispatcher(
            queue,
            engines,  # type: ignore[arg-type]
            self.replies.append,
            HostLog(self.log.append),
            slots=8,
            ahead=ahead,
            hang_seconds=hang_seconds,
        )

    def generation(self, number: int, vfm: str = "a", version: int = 1) -> Generation:
        path = self.folder / f"{number}.safetensors"
        path.touch()
        generation = Generation(number, vfm, version, ARTIFACT, 2, path, ())
        assert self.dispatcher.load(generation).error is None
        return generation

    def vfm(self, name: str, number: int, **policy: Any) -> Generation:
        self.dispatcher.set_policy(name, VfmPolicy(**policy), new=True)
        return self.generation(number, name)

    def request(self, *members: tuple[Generation, int], deadline: float | None = None) -> Pending:
        """Submit a request of so many rows for each generation."""
        request_id = " ".join(f"{generation.vfm}{count}" for generation, count in members)
        request = Pending(Ask(frozenset(), {}, lambda _: None, request_id=request_id), [])
        groups = []
        for generation, count in members:
            member = Member(generation, generation.number, frozenset({"vector"}), [None] * count)
            request.members.append(member)
            encoded: Any = SimpleNamespace(tokens={"input_ids": np.zeros(3, np.int32)}, offsets=[])
            tasks = [RowTask(request, member, i, encoded) for i in range(count)]
            groups.append([Row(generation.vfm, 3, task, deadline) for task in tasks])
        self.accepted = self.dispatcher.submit(request, groups)
        return request

    def reply(self, request: Pending) -> Any:
        """Wait for its reply."""
        wait_for(lambda: request in self.replies, "a reply")
        return request.reply()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def host(tmp_path: Path, engine: FakeEngine) -> Iterator[Host]:
    host = Host(tmp_path, [engine])
    host.dispatcher.start()
    yield host
    engine.gate.set()
    host.dispatcher.stop()
    assert engine.stopped
    assert len(host.replies) == len({id(r) for r in host.replies}), "somebody was answered twice"


def values(reply: Any) -> dict[str, list[float]]:
    assert not isinstance(reply, FMplexError), reply
    return {name: array[:, 0].tolist() for name, array in reply.items()}


def test_requests_of_several_rows_and_vfms(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    requests = [host.request((a, 3)), host.request((a, 1), (b, 2)), host.request((b, 9))]
    answers = [values(host.reply(r)) for r in requests]
    assert answers == [
        {"port1.vector": [1, 1, 1]},
        {"port1.vector": [1], "port2.vector": [2, 2]},
        {"port2.vector": [2] * 9},
    ]
    assert max(len(b.rows) for b in engine.batches) <= 4
    assert (a.rows, b.rows) == (0, 0)


def test_provenance(host: Host) -> None:
    request = host.request((host.vfm("a", 7), 2))
    host.reply(request)
    (member,) = request.members
    info = [answer.provenance for answer in member.answers if answer]
    assert [(i["vfm"], i["version"], i["generation"], i["batch_rows"]) for i in info] == [("a", 1, 7, 2)] * 2


def test_an_engine_that_dies_under_a_batch(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    engine.deaths.append(dies_on(RunBatch))
    assert values(host.reply(host.request((a, 2), (b, 1)))) == {"port1.vector": [1, 1], "port2.vector": [2]}
    assert engine.starts == 2
    assert engine.live == {1, 2}, "the successor holds what it held"
    (line,) = (line for line in host.log if "starting a new one" in line)
    assert line.endswith("; it had request 'a2 b1' of vFM 'a' version 1, request 'a2 b1' of vFM 'b' version 1")


def test_a_batch_that_takes_far_longer_than_it_should_is_told(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "SLOW_SECONDS", 0.05)
    a, quick = host.vfm("a", 1), engine.answer
    engine.answer = lambda message: replace(quick(message), seconds=7.0)
    for rows in (2, 3):
        host.reply(host.request((a, rows)))
    (line,) = (line for line in host.log if line.startswith("slow: "))
    assert line == "slow: request 'a2' of vFM 'a' version 1: their batch took 7.0 s, it should have taken 1 ms"


def poison(generation: int) -> Callable[[object], bool]:
    """For `FakeEngine.deaths`: the engine dies under a batch with a row of it."""
    return lambda message: isinstance(message, RunBatch) and generation in message.generations


def test_a_vfm_whose_row_kills_engines_is_quarantined_alone(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    engine.deaths += [poison(1)] * 50
    mixed, others = host.request((a, 1), (b, 1)), [host.request((b, 3)) for _ in range(3)]
    error = host.reply(mixed)
    assert isinstance(error, Quarantined)
    assert "vFM 'a': version 1 is quarantined: " in str(error)
    assert "fmplex task release a" in str(error)
    assert [values(host.reply(request)) for request in others] == [{"port2.vector": [2, 2, 2]}] * 3
    died = engine.starts
    with pytest.raises(Quarantined, match="vFM 'a'"):
        host.request((a, 1))
    assert values(host.reply(host.request((b, 2)))) == {"port2.vector": [2, 2]}
    assert engine.starts == died <= 1 + 7
    assert (a.rows, b.rows) == (0, 0)
    (line,) = (line for line in host.log if line.startswith("quarantined: "))
    assert line.endswith("; the row is of request 'a1 b1' of vFM 'a' version 1")
    assert counted(host, "fmplex_quarantined") == {"a": 1}
    assert counted(host, "fmplex_engine_deaths_total") == {None: died - 1}

    engine.deaths.clear()
    assert host.dispatcher.lift_quarantine(a)
    assert not host.dispatcher.lift_quarantine(b)
    assert values(host.reply(host.request((a, 1)))) == {"port1.vector": [1]}
    assert counted(host, "fmplex_quarantined") == {}


def test_what_waits_of_a_quarantined_vfm_is_answered_and_its_new_version_is_served(
    host: Host, engine: FakeEngine
) -> None:
    a = host.vfm("a", 1)
    engine.deaths += [poison(1)] * 50
    engine.gate.clear()
    requests = [host.request((a, 2)) for _ in range(10)]
    engine.gate.set()
    errors = [host.reply(request) for request in requests]
    assert all(isinstance(error, Quarantined) for error in errors), errors
    assert (a.rows, host.dispatcher.waiting("a")) == (0, 0)
    mended = host.generation(2, "a", version=2)
    assert values(host.reply(host.request((mended, 1)))) == {"port2.vector": [2]}


def test_engines_that_die_of_themselves_cost_no_row(host: Host, engine: FakeEngine) -> None:
    """Two deaths make suspects of rows that did nothing; they are tried and answered."""
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    engine.deaths += [dies_on(RunBatch)] * 2
    assert values(host.reply(host.request((a, 3), (b, 1)))) == {"port1.vector": [1, 1, 1], "port2.vector": [2]}
    assert engine.starts == 3
    assert counted(host, "fmplex_rows_total", "served") == {"a": 3, "b": 1}
    assert (a.rows, b.rows) == (0, 0)


def test_an_engine_that_dies_of_something_else_convicts_no_suspect(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.deaths += [dies_on(RunBatch)] * 3  # twice with it, and once while it is tried
    assert values(host.reply(host.request((a, 1)))) == {"port1.vector": [1]}
    assert engine.starts == 4


def test_a_suspect_whose_time_is_over_is_not_run(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    deadline = time.monotonic() + 2
    engine.deaths.append(dies_on(RunBatch))
    engine.deaths.append(lambda message: isinstance(message, RunBatch) and not time.sleep(deadline - time.monotonic()))
    assert isinstance(host.reply(host.request((a, 1), deadline=deadline)), DeadlineExceeded)
    assert engine.starts == 3
    assert not engine.batches
    assert a.rows == 0


def test_a_suspect_whose_time_is_over_is_answered_before_its_neighbours_are_tried(
    host: Host, engine: FakeEngine
) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    engine.gate.clear()
    busy = host.request((b, 1))
    assert engine.entered.acquire(timeout=60)
    deadline = time.monotonic() + 2
    late, patient = host.request((a, 1), deadline=deadline), host.request((a, 1))
    host.dispatcher.retire(a)
    died = poison(1)
    engine.deaths.append(died)
    engine.deaths.append(lambda message: died(message) and not time.sleep(max(0, deadline - time.monotonic())))
    engine.gate.set()
    assert isinstance(host.reply(late), DeadlineExceeded)
    assert values(host.reply(patient)) == {"port1.vector": [1]}
    assert values(host.reply(busy)) == {"port2.vector": [1 + 1]}
    wait_for(lambda: engine.live == {2}, "the retired generation is dropped")


def test_an_engine_that_hangs_is_ended(tmp_path: Path, engine: FakeEngine) -> None:
    engine.device = "cpu"  # elsewhere the first batch may take long
    hung: list[RunBatch] = []

    def answer(message: RunBatch) -> Any:
        if hung:
            return answer_all(message)
        hung.append(message)
        return None  # as if nothing came, for as long as somebody listens

    engine.answer = answer
    host = Host(tmp_path, [engine], hang_seconds=0.5)
    host.dispatcher.start()
    try:
        assert values(host.reply(host.request((host.vfm("a", 1), 1)))) == {"port1.vector": [1]}
    finally:
        host.dispatcher.stop()
    assert engine.starts >= 2
    assert any("hangs: no answer for " in line for line in host.log)


def test_a_defect_of_ours_ends_the_engine_and_not_the_hearing(host: Host, engine: FakeEngine) -> None:
    def answer(message: RunBatch) -> BatchDone:
        engine.answer = answer_all
        raise ZeroDivisionError("of ours")

    engine.answer = answer
    assert values(host.reply(host.request((host.vfm("a", 1), 1)))) == {"port1.vector": [1]}
    assert engine.starts == 2
    assert any(line.startswith("defect: ZeroDivisionError: of ours; ") for line in host.log)


def test_an_idle_engine_that_hangs_is_ended_before_anybody_asks(tmp_path: Path, engine: FakeEngine) -> None:
    received, silent = engine.receive, threading.Event()

    def receive(timeout: float) -> Any:
        answer = received(timeout)
        return None if silent.is_set() and isinstance(answer, Pong) else answer

    engine.receive = receive  # type: ignore[method-assign]
    host = Host(tmp_path, [engine], hang_seconds=0.5)
    host.dispatcher.start()
    try:
        wait_for(lambda: engine.pings > 1, "pings that are answered")
        assert engine.starts == 1
        silent.set()
        wait_for(lambda: engine.starts > 1, "another engine")
        silent.clear()
        assert values(host.reply(host.request((host.vfm("a", 1), 1)))) == {"port1.vector": [1]}
    finally:
        host.dispatcher.stop()
    assert any("to the question whether it lives" in line for line in host.log)


def test_a_batch_that_does_not_fit_makes_the_next_ones_smaller(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.answer = lambda message: replace(answer_all(message), fitting=2 if len(message.rows) > 2 else None)
    assert values(host.reply(host.request((a, 12)))) == {"port1.vector": [1] * 12}
    assert [len(batch.rows) for batch in engine.batches] == [4, 2, 2, 2, 2]
    assert [line for line in host.log if "did not fit" in line] == [
        "a batch of 4 rows did not fit into memory; of 2 from here on"
    ]


def test_engines_that_die_at_once_over_and_over_are_started_with_pauses(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "FREE_LIVES", 3)
    host.vfm("a", 1)
    engine.deaths += [dies_on(DropGeneration)] * 4
    for number in range(2, 6):
        host.dispatcher.retire(host.generation(number))
        wait_for(lambda most=number: engine.starts == most, "a new engine")
    assert [line.rpartition("; ")[2] for line in host.log if "starting" in line] == [
        *["starting a new one"] * 2, "starting a new one in 0.5 s", "starting a new one in 1.0 s"
    ]  # fmt: skip


@pytest.mark.parametrize("message", [LoadGeneration, DropGeneration])
def test_an_engine_that_dies_under_a_command(host: Host, engine: FakeEngine, message: type) -> None:
    a = host.vfm("a", 1)
    engine.deaths.append(dies_on(message))
    b = host.vfm("b", 2)
    host.dispatcher.retire(a)
    assert values(host.reply(host.request((b, 1)))) == {"port2.vector": [2]}
    wait_for(lambda: engine.live == {2}, "1 is dropped, 2 is held")


def test_a_generation_that_kills_engines_is_refused_and_the_others_are_served(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.deaths += [_loads(2)] * MAX_DEATHS
    poison, *others = (replace(a, number=n, vfm=f"v{n}", path=a.path.with_name(str(n))) for n in range(2, 6))
    refused, *loaded = host.dispatcher.load_all([poison, *others])
    assert refused.error is not None
    assert f"{MAX_DEATHS} engines died while they loaded it" in refused.error
    assert not any(answer.error for answer in loaded)
    assert values(host.reply(host.request((a, 1)))) == {"port1.vector": [1]}
    assert engine.live == {1, 3, 4, 5}


def test_generations_that_were_to_be_loaded_when_engines_died_of_something_else(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.deaths += [_loads(2), _loads(2), _loads(4)]
    many = [replace(a, number=n, vfm=f"v{n}", path=a.path.with_name(str(n))) for n in range(2, 7)]
    assert not any(answer.error for answer in host.dispatcher.load_all(many))
    assert engine.live == {1, *range(2, 7)}


def test_a_load_is_not_to_blame_for_what_runs_beside_it(host: Host, engine: FakeEngine) -> None:
    """A batch that comes while generation 2 is being loaded ends the engine, each time."""
    a = host.vfm("a", 1)

    def beside(message: object) -> bool:
        end = time.monotonic() + 0.3
        while _loads(2)(message) and time.monotonic() < end:
            if any(isinstance(other, RunBatch) for other in list(engine.inbox.queue)):
                return True
            time.sleep(1e-3)
        return False

    engine.deaths += [beside] * MAX_DEATHS
    engine.gate.clear()
    busy = host.request((a, 1))
    assert engine.entered.acquire(timeout=60)
    waiting = host.request((a, 1))
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(host.dispatcher.load, replace(a, number=2, vfm="b", path=a.path.with_name("2")))
        wait_for(lambda: not engine.inbox.empty() or host.dispatcher._lanes[0].commands, "the load waits")
        engine.gate.set()
        assert loaded.result(30).error is None
    assert engine.starts == 2
    for request in (busy, waiting):
        assert values(host.reply(request)) == {"port1.vector": [1]}


def _loads(number: int) -> Callable[[object], bool]:
    return lambda message: isinstance(message, LoadGeneration) and message.generation == number


@pytest.fixture
def ahead(tmp_path: Path, engine: FakeEngine) -> Iterator[Host]:
    """A host that sends a batch while another one runs."""
    host = Host(tmp_path, [engine], ahead=True)
    host.dispatcher.start()
    yield host
    engine.gate.set()
    host.dispatcher.stop()


def test_a_batch_is_sent_while_another_one_runs(ahead: Host, engine: FakeEngine) -> None:
    a, b = ahead.vfm("a", 1), ahead.vfm("b", 2)
    engine.gate.clear()
    requests = [ahead.request((a, 4)) for _ in range(4)] + [ahead.request((b, 1))]
    (lane,) = ahead.dispatcher._lanes
    wait_for(lambda: len(lane.flights) == 2, "one runs, one is prepared")
    assert ahead.dispatcher.waiting("a") == 8, "no more than that"
    engine.gate.set()
    assert [len(values(ahead.reply(r)).popitem()[1]) for r in requests] == [4, 4, 4, 4, 1]


def test_an_engine_that_dies_with_two_batches(ahead: Host, engine: FakeEngine) -> None:
    """Only the one that ran is to blame: the other's rows see any number of engines die."""
    a, b = ahead.vfm("a", 1), ahead.vfm("b", 2)
    engine.deaths += [poison(1)] * 50
    engine.gate.clear()
    guilty, innocent = ahead.request((a, 4)), ahead.request((b, 4))
    (lane,) = ahead.dispatcher._lanes
    wait_for(lambda: len(lane.flights) == 2, "one runs, one is prepared")
    engine.gate.set()
    assert isinstance(ahead.reply(guilty), Quarantined)
    assert values(ahead.reply(innocent)) == {"port2.vector": [2] * 4}
    assert {row.payload.deaths for row in innocent.rows} == {0}


def test_pinned_adapters(host: Host, engine: FakeEngine) -> None:
    """An engine that starts anew pins them again; what they leave of the slots is what a batch may ask for."""
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    c = host.vfm("c", 3)
    assert host.dispatcher.pin(c, True) is None
    assert host.dispatcher.pin(a, True) is None
    assert host.dispatcher.pin(b, True) is None
    assert host.dispatcher.pin(b, False) is None
    assert engine.pinned == {1, 3}
    slots = lambda: host.dispatcher._queue.slots  # type: ignore[attr-defined]  # noqa: E731
    assert slots() == 6
    engine.deaths.append(dies_on(RunBatch))
    assert values(host.reply(host.request((b, 1)))) == {"port2.vector": [2]}
    assert engine.pinned == {1, 3}
    host.dispatcher.retire(a)
    wait_for(lambda: slots() == 7, "its slot is given back")


def test_who_has_a_slot_is_known(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    (lane,) = host.dispatcher._lanes
    for installed, evicted, resident in (([1, 5], [], {1, 5}), ([6], [5], {1, 6}), ([], [1], {6})):
        moved = {"installed": installed, "evicted": evicted}
        engine.answer = lambda message, moved=moved: replace(answer_all(message), **moved)  # type: ignore[misc]
        host.reply(host.request((a, 1)))
        assert lane.resident == resident
    engine.answer = answer_all
    engine.deaths.append(dies_on(RunBatch))
    host.reply(host.request((a, 1)))
    assert not lane.resident, "a new engine holds nothing"


def test_an_engine_that_does_not_come_back_at_once(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.deaths.append(dies_on(RunBatch))
    engine.start_errors.append("no memory")
    assert values(host.reply(host.request((a, 1)))) == {"port1.vector": [1]}
    assert any("no memory; trying again in" in line for line in host.log)


@pytest.mark.parametrize(
    "lie",
    [
        lambda m: BatchDone(m.batch, [], 0.1),
        lambda m: BatchDone(m.batch + 1, answer_all(m).groups, 0.1),
        lambda m: BatchDone(m.batch, answer_all(m).groups * 2, 0.1),
    ],
    ids=["nobody answered", "another batch", "answered twice"],
)
def test_an_answer_that_does_not_fit_its_batch(
    host: Host, engine: FakeEngine, lie: Callable[[RunBatch], BatchDone]
) -> None:
    a = host.vfm("a", 1)

    def once(message: RunBatch) -> BatchDone:
        engine.answer = answer_all
        return lie(message)

    engine.answer = once
    assert values(host.reply(host.request((a, 3)))) == {"port1.vector": [1, 1, 1]}
    assert engine.starts == 2


def test_a_row_with_an_error_fails_its_request_alone(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2)
    engine.gate.clear()
    blocker = host.request((b, 1))
    assert engine.entered.acquire(timeout=60)
    bad, good = host.request((a, 6)), host.request((b, 2))

    def fails_for_1(message: RunBatch) -> BatchDone:
        done = answer_all(message)
        for group in done.groups:
            if group.generation == 1:
                group.errors[group.rows[0]] = "vFM 'a': not finite"
        return done

    engine.answer = fails_for_1
    engine.gate.set()
    assert "not finite" in str(host.reply(bad))
    assert values(host.reply(good)) == {"port2.vector": [2, 2]}
    assert values(host.reply(blocker)) == {"port2.vector": [2]}
    assert a.rows == 0


def test_deadline_passes_in_the_queue(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.gate.clear()
    running = host.request((a, 1))
    assert engine.entered.acquire(timeout=60)
    late = host.request((a, 2), deadline=time.monotonic())
    engine.gate.set()
    reply = host.reply(late)
    assert isinstance(reply, DeadlineExceeded)
    assert "vFM 'a': the deadline passed after" in str(reply)
    assert values(host.reply(running)) == {"port1.vector": [1]}
    assert sum(len(batch.rows) for batch in engine.batches) == 1, "no forward pass was spent on it"
    assert a.rows == 0


def test_deadlines_are_answered_while_the_engine_is_busy(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    engine.gate.clear()
    running = host.request((a, 1))
    assert engine.entered.acquire(timeout=60)
    later = host.request((a, 1), deadline=time.monotonic() + 0.1)
    sooner = host.request((a, 1), deadline=time.monotonic() + 0.02)
    for late in (sooner, later):
        assert isinstance(host.reply(late), DeadlineExceeded)
    assert running not in host.replies, "the engine was never free"
    engine.gate.set()
    host.reply(running)


def test_a_deadline_that_cannot_be_met_is_said_to_be_that(host: Host, engine: FakeEngine) -> None:
    a = host.vfm("a", 1)
    host.reply(host.request((a, 1)))  # something was measured lately, so predictions are believed
    host.dispatcher.use_fit(Fit(CostModel(alpha=10.0, beta=0.0), 0.0, ()))
    reply = host.reply(host.request((a, 1), deadline=time.monotonic() + 5))
    assert re.search(r"vFM 'a': the deadline is in [45]\d+ ms and cannot be met any more, after", str(reply))
    assert len(engine.batches) == 1


def test_a_full_queue_takes_all_rows_or_none(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1), host.vfm("b", 2, max_queue_size=2)
    engine.gate.clear()
    running = host.request((a, 1))
    assert engine.entered.acquire(timeout=60)
    with pytest.raises(QueueFull, match=r"vFM 'b': no room for . more rows in its queue, 0 of 2 wait"):
        host.request((a, 2), (b, 3))
    assert host.dispatcher.waiting("a") == host.dispatcher.waiting("b") == 0
    assert (a.rows, b.rows) == (1, 0)
    engine.gate.set()
    host.reply(running)


def test_retired_generation_drains_then_goes(host: Host, engine: FakeEngine) -> None:
    old = host.vfm("a", 1)
    engine.gate.clear()
    request = host.request((old, 6))
    assert engine.entered.acquire(timeout=60)
    host.dispatcher.retire(old)
    host.request((old, 1))
    assert not host.accepted, "it takes no more rows"
    engine.gate.set()
    assert values(host.reply(request)) == {"port1.vector": [1] * 6}
    wait_for(lambda: not engine.live, "the engine forgot it")
    wait_for(lambda: not old.path.exists(), "its file is gone")


def test_a_refusal_by_one_engine_is_taken_back_from_all(tmp_path: Path) -> None:
    good, bad = FakeEngine(), FakeEngine()
    host = Host(tmp_path, [good, bad])
    host.dispatcher.start()
    try:
        bad.refuse = lambda message: "rank too large" if message.vfm == "a" else None
        host.dispatcher.set_policy("a", VfmPolicy(), new=True)
        generation = Generation(1, "a", 1, ARTIFACT, 2, tmp_path / "1", ())
        assert host.dispatcher.load(generation).error == "rank too large"
        wait_for(lambda: not good.live and not bad.live, "neither holds it")
        host.generation(2, "b")
        assert good.live == bad.live == {2}
    finally:
        host.dispatcher.stop()


def test_rows_find_the_engine_that_is_free(tmp_path: Path) -> None:
    """However many of the others are busy, in whichever order they began to wait."""
    engines = [FakeEngine() for _ in range(3)]
    host = Host(tmp_path, engines)
    host.dispatcher.start()
    try:
        a = host.vfm("a", 1)
        for engine in engines:
            engine.gate.clear()
        running = [host.request((a, 4)) for _ in engines]
        for engine in engines:
            assert engine.entered.acquire(timeout=60), "each has one"
        for engine in reversed(engines):
            engine.gate.set()
            assert values(host.reply(host.request((a, 2)))) == {"port1.vector": [1, 1]}
            engine.gate.clear()
            running.append(host.request((a, 4)))
            assert engine.entered.acquire(timeout=60), "the two rows"
            assert engine.entered.acquire(timeout=60), "the four that came after them"
    finally:
        for engine in engines:
            engine.gate.set()
        for request in running:
            assert values(host.reply(request)) == {"port1.vector": [1] * 4}
        host.dispatcher.stop()


def test_stop_answers_what_waits(tmp_path: Path, engine: FakeEngine) -> None:
    host = Host(tmp_path, [engine])
    host.dispatcher.start()
    a = host.vfm("a", 1)
    engine.gate.clear()
    running = host.request((a, 1))
    assert engine.entered.acquire(timeout=60)
    waiting = [host.request((a, 2)) for _ in range(3)]
    stopper = threading.Thread(target=host.dispatcher.stop)
    stopper.start()
    wait_for(lambda: host.dispatcher._stopping, "stopping")
    with pytest.raises(Unavailable, match="shutting down"):
        host.request((a, 1))
    engine.gate.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert values(host.reply(running)) == {"port1.vector": [1]}
    assert all(isinstance(host.reply(r), Unavailable) for r in waiting)


def test_an_engine_that_cannot_start(tmp_path: Path, engine: FakeEngine) -> None:
    engine.start_errors.append("no such backbone")
    host = Host(tmp_path, [FakeEngine(), engine])
    with pytest.raises(EngineFailure, match="no such backbone"):
        host.dispatcher.start()
    assert host.engines[0].stopped


def test_a_device_that_differs_from_its_fit_gets_another(tmp_path: Path) -> None:
    engine = FakeEngine()  # every batch takes 1 ms, whatever is in it
    host = Host(tmp_path, [engine])
    host.dispatcher.start()
    try:
        cost = CostModel(alpha=1e-4, beta=1e-2)
        host.dispatcher.use_fit(Fit(cost, 0.05, (Point(1, 3, 1, 0.03),)))
        vfm = host.vfm("a", 1)
        for i in range(100):
            host.reply(host.request((vfm, 4 if i % 2 else 1)))
        assert sum("cost model from here on: α" in line for line in host.log) == 1
        now = host.dispatcher._queue.cost  # type: ignore[attr-defined]
        assert abs(now.batch([3] * 4, 1) / now.batch([3], 1) - 1) < 0.2
    finally:
        host.dispatcher.stop()


def test_what_the_meter_is_told(host: Host, engine: FakeEngine) -> None:
    a, b = host.vfm("a", 1, weight=2), host.vfm("b", 2, max_queue_size=2)
    engine.gate.clear()
    running = host.request((a, 2))
    assert engine.entered.acquire(timeout=60)
    late = host.request((a, 1), (b, 2), deadline=time.monotonic())
    assert isinstance(host.reply(late), DeadlineExceeded)
    with pytest.raises(QueueFull):
        host.request((a, 1), (b, 3))
    assert counted(host, "fmplex_running_rows") == {"a": 2}
    engine.gate.set()
    host.reply(running)
    engine.deaths += [dies_on(RunBatch)] * (deaths := 5)  # the two rows together thrice, one of them twice alone
    host.reply(host.request((b, 2)))
    wait_for(lambda: engine.starts == 1 + deaths, "a new engine")
    assert counted(host, "fmplex_weight") == {"a": 2, "b": 1}
    assert counted(host, "fmplex_rows_total", "served") == {"a": 2}
    assert counted(host, "fmplex_rows_total", "expired") == {"a": 1, "b": 2}
    assert counted(host, "fmplex_rows_total", "failed") == {"b": 2}
    assert counted(host, "fmplex_rows_total", "cancelled") == {}, "rows that were never all queued count nothing"
    assert counted(host, "fmplex_running_rows") == counted(host, "fmplex_queue_rows") == {}
    assert counted(host, "fmplex_lost_batches_total") == {None: deaths}
    host.dispatcher.remove_vfm("b")
    assert counted(host, "fmplex_weight") == {"a": 2}


def counted(host: Host, name: str, label: str = "") -> dict[str | None, float]:
    """vFM → value, where it is not zero."""
    samples = host.dispatcher.metrics().samples()
    found = [(vfm, value) for s, vfm, value in samples if s.name == name and "".join(s.labels.values()) == label]
    return {vfm: value for vfm, value in found if value}
