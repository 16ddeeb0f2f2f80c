"""The queue's contract, held by a state machine of random calls; and what is particular to first come first served."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fifo import FifoQueue
from fmplex_backend.scheduling.interface import Batch, QueueFull, Row, VfmPolicy

ENDED = {"served", "rejected", "expired", "cancelled"}
NAMES = ("a", "b", "c")
LIMIT, MAX_BATCH = 6, 4
COST = CostModel(alpha=1e-3, beta=1e-5)


def rows(vfm: str, count: int, deadline: float | None = None) -> list[Row]:
    return [Row(vfm, 8, payload=i, deadline=deadline) for i in range(count)]


class QueueMachine(RuleBasedStateMachine):
    """Any order of calls keeps the contract of `Queue`. The model is a plain list of the rows that wait."""

    running = Bundle("running")

    @initialize()
    def start(self) -> None:
        self.queue = FifoQueue(MAX_BATCH, COST)
        self.now = 0.0
        self.known: set[str] = set()
        self.order: list[Row] = []
        self.all: list[Row] = []
        self.ended: dict[int, str] = {}
        for name in NAMES:
            self.add(name)

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        if name in self.known:
            with pytest.raises(ValueError, match="known already"):
                self.queue.add_vfm(name, VfmPolicy(), self.now)
        else:
            self.queue.add_vfm(name, VfmPolicy(max_queue_size=LIMIT), self.now)
            self.known.add(name)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if name in self.known:
            self.queue.remove_vfm(name)
            self.known.remove(name)

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 8), patience=st.none() | st.floats(0, 5))
    def submit(self, name: str, count: int, patience: float | None) -> None:
        new = rows(name, count, None if patience is None else self.now + patience)
        self.all += new
        if name not in self.known:
            with pytest.raises(KeyError):
                self.queue.submit(new, self.now)
            self.all = self.all[:-count]
            return
        if sum(r.vfm == name for r in self.order) + count > LIMIT:
            with pytest.raises(QueueFull):
                self.queue.submit(new, self.now)
            assert {r.state for r in new} == {"rejected"}
        else:
            self.queue.submit(new, self.now)
            self.order += new

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if not self.all:
            return
        row = data.draw(st.sampled_from(self.all))
        was_waiting = row in self.order
        assert self.queue.cancel(row) == was_waiting
        if was_waiting:
            self.order.remove(row)
            assert row.state == "cancelled"

    @rule(target=running, step=st.floats(0, 3))
    def next_batch(self, step: float) -> Batch | None:
        self.now += step
        decision = self.queue.next_batch(self.now)
        taken = list(decision.batch.rows) if decision.batch else []
        assert len(taken) <= MAX_BATCH
        assert decision.batch is None or taken
        seen = {id(r) for r in (*taken, *decision.expired)}
        assert seen == {id(r) for r in self.order[: len(seen)]}, "the oldest, and nobody is passed over"
        assert all(r.deadline is not None and r.deadline <= self.now for r in decision.expired)
        assert all(r.deadline is None or r.deadline > self.now for r in taken)
        assert [r for r in self.order if id(r) in {id(t) for t in taken}] == taken
        if len(taken) < MAX_BATCH:
            assert len(seen) == len(self.order), "a batch with room left nobody waiting"
        self.order = self.order[len(seen) :]
        return decision.batch

    @rule(batch=consumes(running))
    def complete(self, batch: Batch | None) -> None:
        if batch is not None:
            self.queue.complete(batch, 0.01, self.now)
            assert {r.state for r in batch.rows} == {"served"}

    @rule(batch=consumes(running))
    def put_back(self, batch: Batch | None) -> None:
        if batch is not None:
            self.queue.put_back(batch, self.now)
            self.order = [*batch.rows, *self.order]
            assert {r.state for r in batch.rows} == {"waiting"}

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.waiting() == len(self.order)
        for name in NAMES:
            assert self.queue.waiting(name) == sum(r.vfm == name for r in self.order)

    @invariant()
    def an_end_is_final(self) -> None:
        for row in getattr(self, "all", ()):
            assert self.ended.setdefault(id(row), row.state) == row.state or self.ended[id(row)] not in ENDED
            self.ended[id(row)] = row.state

    def teardown(self) -> None:
        """Drained, every row has ended in exactly one way, but for those that an engine still holds."""
        if not hasattr(self, "queue"):
            return
        while (decision := self.queue.next_batch(self.now)).batch or decision.expired:
            if decision.batch:
                self.queue.complete(decision.batch, 0.01, self.now)
        assert {r.state for r in self.all} <= ENDED | {"running"}
        assert self.queue.waiting() == 0


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestQueueContract = QueueMachine.TestCase


@pytest.fixture
def queue() -> FifoQueue:
    queue = FifoQueue(MAX_BATCH, COST)
    for name in NAMES:
        queue.add_vfm(name, VfmPolicy(max_queue_size=LIMIT), 0)
    return queue


def test_batches_mix_vfms_in_order_of_arrival(queue: FifoQueue) -> None:
    for name in "abcab":
        queue.submit(rows(name, 1), 0)
    batch = queue.next_batch(0).batch
    assert batch is not None
    assert [row.vfm for row in batch.rows] == ["a", "b", "c", "a"]


def test_put_back_goes_first_and_in_order(queue: FifoQueue) -> None:
    first, second = rows("a", 3), rows("b", 3)
    queue.submit(first, 0)
    batch = queue.next_batch(0).batch
    assert batch is not None
    queue.submit(second, 1)
    queue.put_back(batch, 2)
    again = queue.next_batch(3).batch
    assert again is not None
    assert list(again.rows) == [*first, second[0]]
    assert again.number != batch.number


def test_put_back_may_exceed_the_queue_size(queue: FifoQueue) -> None:
    """Rows that were taken have a right to their place, even where others took the room."""
    queue.submit(rows("a", 4), 0)
    batch = queue.next_batch(0).batch
    assert batch is not None
    queue.submit(rows("a", LIMIT), 0)
    queue.put_back(batch, 0)
    assert queue.waiting("a") == LIMIT + 4
    with pytest.raises(QueueFull, match="10 of 6 wait"):
        queue.submit(rows("a", 1), 0)


def test_removed_vfm_drains(queue: FifoQueue) -> None:
    waiting = rows("a", 2)
    queue.submit(waiting, 0)
    queue.remove_vfm("a")
    with pytest.raises(KeyError):
        queue.submit(rows("a", 1), 0)
    batch = queue.next_batch(0).batch
    assert batch is not None
    assert list(batch.rows) == waiting
    queue.add_vfm("a", VfmPolicy(), 0)


def test_changed_limit_acts_at_once(queue: FifoQueue) -> None:
    queue.change_vfm("a", VfmPolicy(max_queue_size=1), 0)
    with pytest.raises(QueueFull):
        queue.submit(rows("a", 2), 0)
    with pytest.raises(KeyError):
        queue.change_vfm("z", VfmPolicy(), 0)
