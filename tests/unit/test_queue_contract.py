"""The contract of `Queue`, held by every policy: a state machine of random calls, and single cases."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fmplex_backend.scheduling.base import CLIP, PolicyQueue
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import AllFull, Batch, QueueFull, RateExceeded, Rejected, Row, VfmPolicy
from fmplex_backend.scheduling.policies import PolicyName, make_queue

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
ENDED = {"served", "rejected", "expired", "cancelled"}
NAMES = ("a", "b", "c")
LIMIT, MAX_BATCH = 6, 4
COST = CostModel(alpha=5e-3, beta=2e-5, gamma=1e-4, delta=1e-8)

sizes = st.sampled_from((1, 8, 8, 8, 40, 200))
vfm_policies = st.builds(
    VfmPolicy,
    weight=st.sampled_from((1e-3, 0.5, 1.0, 4.0, 1e3)),
    max_queue_size=st.just(LIMIT),
    max_rows_in_flight=st.none() | st.integers(1, 5),
    latency_slo=st.none() | st.floats(1e-3, 1.0),
)


def rows(vfm: str, count: int, size: int = 8, deadline: float | None = None) -> list[Row]:
    return [Row(vfm, size, payload=i, deadline=deadline) for i in range(count)]


def batch_of(queue: PolicyQueue[Any], now: float = 0.0) -> Batch:
    batch = queue.next_batch(now).batch
    assert batch is not None
    return batch


class QueueMachine(RuleBasedStateMachine):
    """Any order of calls keeps the contract. The model: a list of the rows that wait, a count of those that run."""

    policy: PolicyName
    running = Bundle("running")

    @initialize()
    def start(self) -> None:
        self.queue = make_queue(self.policy, MAX_BATCH, COST)
        self.now = 0.0
        self.policies: dict[str, VfmPolicy] = {}
        """Of every vFM that is known, or has rows left."""
        self.known: set[str] = set()
        self.line: list[Row] = []
        self.in_flight: Counter[str] = Counter()
        self.all: list[Row] = []
        self.ended: dict[int, str] = {}
        for name in NAMES:
            self.add(name, VfmPolicy(max_queue_size=LIMIT))

    @rule(name=st.sampled_from(NAMES), policy=vfm_policies)
    def add(self, name: str, policy: VfmPolicy) -> None:
        if name in self.known:
            with pytest.raises(ValueError, match="known already"):
                self.queue.add_vfm(name, VfmPolicy(), self.now)
        else:
            self.queue.add_vfm(name, policy, self.now)
            self.known.add(name)
            self.policies[name] = policy

    @rule(name=st.sampled_from(NAMES), policy=vfm_policies)
    def change(self, name: str, policy: VfmPolicy) -> None:
        if name in self.known:
            self.queue.change_vfm(name, policy, self.now)
            self.policies[name] = policy
        else:
            with pytest.raises(KeyError):
                self.queue.change_vfm(name, policy, self.now)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if name in self.known:
            self.queue.remove_vfm(name)
            self.known.remove(name)
        else:
            with pytest.raises(KeyError):
                self.queue.remove_vfm(name)

    @rule(alpha=st.floats(1e-4, 1e-1))
    def change_cost(self, alpha: float) -> None:
        self.queue.change_cost(CostModel(alpha, COST.beta, COST.gamma, COST.delta))

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 8), size=sizes, patience=st.none() | st.floats(0, 5))
    def submit(self, name: str, count: int, size: int, patience: float | None) -> None:
        new = rows(name, count, size, None if patience is None else self.now + patience)
        if name not in self.known:
            with pytest.raises(KeyError):
                self.queue.submit(new, self.now)
            assert {r.state for r in new} == {"new"}
            return
        self.all += new
        if sum(r.vfm == name for r in self.line) + count > LIMIT:
            with pytest.raises(QueueFull) as raised:
                self.queue.submit(new, self.now)
            assert {r.state for r in new} == {"rejected"}, "all or none"
            assert raised.value.wait > 0
            assert raised.value.hopeless == (count > LIMIT)
        else:
            self.queue.submit(new, self.now)
            self.line += new

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if not self.all:
            return
        row = data.draw(st.sampled_from(self.all))
        was_waiting = row in self.line
        assert self.queue.cancel(row) == was_waiting
        if was_waiting:
            self.line.remove(row)
            assert row.state == "cancelled"

    @rule(step=st.floats(0, 3))
    def expire(self, step: float) -> None:
        self.now += step
        decision = self.queue.expire(self.now)
        assert decision.batch is None
        self._end_expired(decision.expired)

    @rule(target=running, step=st.floats(0, 0.1) | st.floats(0, 3))
    def next_batch(self, step: float) -> Batch | None:
        self.now += step
        decision = self.queue.next_batch(self.now)
        self._end_expired(decision.expired)
        assert not [r for r in self.line if r.deadline is not None and r.deadline <= self.now and r.state == "waiting"]
        batch = decision.batch
        if batch is None:
            assert not [r for r in self.line if self._has_room(r.vfm)], "work conserving"
            return None
        assert 1 <= len(batch.rows) <= MAX_BATCH
        assert len({id(r) for r in batch.rows}) == len(batch.rows)
        for name, taken in self._by_vfm(batch).items():
            self._check_order(name, taken)
        for row in batch.rows:
            assert self._has_room(row.vfm)
            assert row.deadline is None or row.deadline > self.now
            self.line.remove(row)
            self.in_flight[row.vfm] += 1
        self._check_shares(batch)
        return batch

    @rule(batch=consumes(running), measured=st.floats(1e-5, 10))
    def complete(self, batch: Batch | None, measured: float) -> None:
        if batch is None:
            return
        charges = self.queue.complete(batch, measured, self.now)
        assert charges.keys() == batch.shares.keys()
        assert math.isclose(sum(charges.values()), min(measured, CLIP * batch.predicted), rel_tol=1e-9)
        assert {r.state for r in batch.rows} == {"served"}
        self._no_longer_run(batch)

    @rule(batch=consumes(running), data=st.data())
    def put_back(self, batch: Batch | None, data: Any) -> None:
        """The caller may end some of the rows itself; the others wait again."""
        if batch is None:
            return
        given_up = set(data.draw(st.sets(st.sampled_from(range(len(batch.rows))), max_size=len(batch.rows) - 1)))
        back = tuple(row for i, row in enumerate(batch.rows) if i not in given_up)
        for i in given_up:
            batch.rows[i].state = "cancelled"
        self.queue.put_back(Batch(batch.number, back, batch.predicted, batch.shares), self.now)
        self.line += back
        assert {r.state for r in back} <= {"waiting"}
        self._no_longer_run(batch)

    def _has_room(self, name: str) -> bool:
        limit = self.policies[name].max_rows_in_flight
        return limit is None or self.in_flight[name] < limit

    def _end_expired(self, expired: list[Row]) -> None:
        for row in expired:
            assert row.state == "expired"
            assert row.deadline is not None
            assert self.now + self.queue.alone(row) > row.deadline
            self.line.remove(row)

    def _by_vfm(self, batch: Batch) -> Mapping[str, list[Row]]:
        return {name: [r for r in batch.rows if r.vfm == name] for name in batch.shares}

    def _check_order(self, name: str, taken: list[Row]) -> None:
        """Rows of a vFM that differ in nothing run in order of arrival; those that came back are the oldest."""
        mine = sorted((r for r in self.line if r.vfm == name), key=lambda row: row.number)
        if len({r.size for r in mine}) == 1 and all(r.due == math.inf for r in mine):
            assert taken == mine[: len(taken)]

    def _check_shares(self, batch: Batch) -> None:
        assert math.isclose(sum(share.fraction for share in batch.shares.values()), 1.0, rel_tol=1e-9)
        assert all(share.fraction > 0 for share in batch.shares.values())
        assert {name: share.rows for name, share in batch.shares.items()} == Counter(r.vfm for r in batch.rows)
        assert batch.predicted > 0

    def _no_longer_run(self, batch: Batch) -> None:
        for row in batch.rows:
            self.in_flight[row.vfm] -= 1

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.waiting() == len(self.line)
        for name in NAMES:
            assert self.queue.waiting(name) == sum(r.vfm == name for r in self.line)

    @invariant()
    def an_end_is_final(self) -> None:
        for row in getattr(self, "all", ()):
            assert self.ended.setdefault(id(row), row.state) == row.state or self.ended[id(row)] not in ENDED
            self.ended[id(row)] = row.state

    def teardown(self) -> None:
        """Whoever is not held back runs to the end; `drain` gives all the others."""
        if not hasattr(self, "queue"):
            return
        while (decision := self.queue.next_batch(self.now)).batch or decision.expired:
            if decision.batch:
                self.queue.complete(decision.batch, 0.01, self.now)
        drained = self.queue.drain()
        assert all(r.state == "running" and not self._has_room(r.vfm) for r in drained)
        assert {r.state for r in self.all} <= ENDED | {"running"}
        assert self.queue.waiting() == 0
        assert self.queue.next_batch(self.now).batch is None


def _machine(name: PolicyName) -> type[Any]:
    machine = type(f"{name.title()}Machine", (QueueMachine,), {"policy": name})
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=30)  # type: ignore[attr-defined]
    return machine.TestCase  # type: ignore[attr-defined, no-any-return]


TestFair, TestFifo, TestDrr, TestVtc = (_machine(name) for name in ("fair", "fifo", "drr", "vtc"))


@pytest.fixture(params=POLICIES)
def queue(request: pytest.FixtureRequest) -> PolicyQueue[Any]:
    queue = make_queue(request.param, MAX_BATCH, COST)
    for name in NAMES:
        queue.add_vfm(name, VfmPolicy(max_queue_size=LIMIT), 0)
    return queue


def test_every_policy_has_a_machine() -> None:
    assert set(POLICIES) == {"fair", "fifo", "drr", "vtc"}


def test_put_back_goes_first_and_in_order(queue: PolicyQueue[Any]) -> None:
    first, second = rows("a", 3), rows("a", 3)
    queue.submit(first, 0)
    batch = batch_of(queue)
    queue.submit(second, 1)
    queue.put_back(batch, 2)
    again = batch_of(queue, 3)
    assert list(again.rows) == [*first, second[0]]
    assert again.number != batch.number


def test_batches_put_back_in_any_order_keep_theirs(queue: PolicyQueue[Any]) -> None:
    """Two engines die, the one with the older rows first."""
    all_rows = rows("a", 6)
    queue.submit(all_rows, 0)
    older, younger = batch_of(queue), batch_of(queue)
    queue.put_back(older, 1)
    queue.put_back(younger, 1)
    assert [*batch_of(queue, 2).rows, *batch_of(queue, 2).rows] == all_rows


def test_put_back_may_exceed_the_queue_size(queue: PolicyQueue[Any]) -> None:
    """Rows that were taken have a right to their place, even where others took the room."""
    queue.submit(rows("a", 4), 0)
    batch = batch_of(queue)
    queue.submit(rows("a", LIMIT), 0)
    queue.put_back(batch, 0)
    assert queue.waiting("a") == LIMIT + 4
    with pytest.raises(QueueFull, match="10 of 6 wait"):
        queue.submit(rows("a", 1), 0)


def test_a_batch_put_back_costs_nobody(queue: PolicyQueue[Any]) -> None:
    """Ten dead engines in a row do not put ``a`` behind ``b``."""
    queue.submit(rows("a", 2), 0)
    for _ in range(10):
        queue.put_back(batch_of(queue), 0)
    queue.complete(batch_of(queue), 0.01, 0)
    for name in "ab":
        queue.submit(rows(name, LIMIT), 1)
    firsts = [row.vfm for _ in range(3) for row in batch_of(queue, 1).rows]
    assert firsts.count("a") >= 4


def test_all_may_be_full_but_each_has_its_even_part(queue: PolicyQueue[Any]) -> None:
    queue.max_waiting_rows = 12
    for name in NAMES:
        queue.change_vfm(name, VfmPolicy(max_queue_size=100), 0)
    queue.submit(rows("a", 12), 0)
    queue.check("b", 4, 0)
    queue.submit(rows("b", 3), 0)
    with pytest.raises(AllFull, match=r"vFM 'b': no room for 2 more rows, 15 of 12 wait in all, 3 of them are its own"):
        queue.submit(rows("b", 2), 0)
    queue.submit(rows("b", 1), 0)
    with pytest.raises(AllFull) as caught:
        queue.check("a", 1, 0)
    assert caught.value.wait > 0
    assert not caught.value.hopeless
    assert (queue.waiting("a"), queue.waiting("b"), queue.waiting()) == (12, 4, 16)


def test_rows_of_one_vfm(queue: PolicyQueue[Any]) -> None:
    mine = rows("a", 6)
    queue.submit(mine, 0)
    queue.submit(rows("b", 2), 0)
    queue.cancel(mine[0])
    ran = batch_of(queue)
    waiting = {row.payload for row in mine[1:]} - {row.payload for row in ran.rows if row.vfm == "a"}
    assert {row.payload for row in queue.rows_of("a")} == waiting
    assert queue.rows_of("nobody") == []


def test_fewer_rows_in_a_batch_from_now_on(queue: PolicyQueue[Any]) -> None:
    queue.submit(rows("a", LIMIT), 0)
    queue.change_max_batch_rows(2)
    assert len(batch_of(queue).rows) == 2


def test_removed_vfm_drains(queue: PolicyQueue[Any]) -> None:
    waiting = rows("a", 2)
    queue.submit(waiting, 0)
    queue.remove_vfm("a")
    with pytest.raises(KeyError):
        queue.submit(rows("a", 1), 0)
    batch = batch_of(queue)
    assert list(batch.rows) == waiting
    queue.add_vfm("a", VfmPolicy(), 0)
    queue.complete(batch, 0.01, 1)
    queue.submit(rows("a", 1), 1)
    assert len(batch_of(queue, 1).rows) == 1


def test_changed_limits_act_at_once(queue: PolicyQueue[Any]) -> None:
    queue.change_vfm("a", VfmPolicy(max_queue_size=1), 0)
    with pytest.raises(QueueFull):
        queue.submit(rows("a", 2), 0)
    with pytest.raises(KeyError):
        queue.change_vfm("z", VfmPolicy(), 0)


def test_rows_in_flight_are_bounded_and_others_go_on(queue: PolicyQueue[Any]) -> None:
    queue.change_vfm("a", VfmPolicy(max_rows_in_flight=1), 0)
    queue.submit(rows("a", 3), 0)
    first = batch_of(queue)
    assert [row.vfm for row in first.rows] == ["a"]
    assert queue.next_batch(0).batch is None
    queue.submit(rows("b", 1), 0)
    assert [row.vfm for row in batch_of(queue).rows] == ["b"]
    queue.change_vfm("a", VfmPolicy(max_rows_in_flight=2), 0)
    assert [row.vfm for row in batch_of(queue).rows] == ["a"]
    queue.complete(first, 0.01, 1)
    assert [row.vfm for row in batch_of(queue).rows] == ["a"]


def test_drain_gives_also_what_is_held_back(queue: PolicyQueue[Any]) -> None:
    queue.change_vfm("a", VfmPolicy(max_rows_in_flight=1), 0)
    queue.submit(rows("a", 3), 0)
    queue.submit(rows("b", 2), 0)
    running = set(map(id, batch_of(queue).rows))
    drained = queue.drain()
    assert len(drained) + len(running) == 5
    assert not running & set(map(id, drained))
    assert queue.waiting() == 0
    assert queue.next_batch(9).batch is None


def test_no_row_starts_after_its_deadline(queue: PolicyQueue[Any]) -> None:
    late, well = rows("a", 1, deadline=1.0), rows("a", 1, deadline=9.0)
    queue.submit(late, 0)
    queue.submit(well, 0)
    assert queue.expire(0.5).wake_at == 1.0
    decision = queue.next_batch(1.0)
    assert decision.expired == late
    assert decision.batch is not None
    assert list(decision.batch.rows) == well
    assert late[0].state == "expired"


def test_a_row_that_cannot_make_it_is_not_run(queue: PolicyQueue[Any]) -> None:
    """Once the device has been measured lately; before, a prediction alone condemns nobody."""
    queue.submit(rows("a", 1, deadline=1e-3), 0)
    queue.complete(batch_of(queue), queue.cost.batch([8], 1), 0.01)
    hopeless = rows("a", 1, deadline=0.012)
    queue.submit(hopeless, 0.011)
    decision = queue.next_batch(0.011)
    assert (decision.batch, decision.expired) == (None, hopeless)


def test_a_hiccup_is_nobodys_use(queue: PolicyQueue[Any]) -> None:
    queue.submit(rows("a", 1), 0)
    batch = batch_of(queue)
    charges = queue.complete(batch, 1000 * batch.predicted, 1)
    assert charges == {"a": pytest.approx(CLIP * batch.predicted)}


@pytest.mark.parametrize("policy", POLICIES)
@given(
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 6),
    asks=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 7)), min_size=1, max_size=30),
)
@settings(max_examples=60)
def test_rate_limit(policy: PolicyName, rate: float, burst: int, asks: list[tuple[float, int]]) -> None:
    """No window of time has more rows than burst + rate · its length; who is refused may come after ``wait``."""
    queue = make_queue(policy, MAX_BATCH, COST)
    queue.add_vfm("a", VfmPolicy(rate=rate, burst=burst), 0)
    now, admitted = 0.0, []
    for step, count in asks:
        now += step
        refused = _refusal(queue, count, now)
        if refused is not None:
            assert refused.hopeless == (count > burst)
            if refused.hopeless:
                continue
            now += refused.wait
            assert _refusal(queue, count, now) is None
        admitted.append((now, count))
    for start, end in itertools.combinations_with_replacement(range(len(admitted)), 2):
        total = sum(count for _, count in admitted[start : end + 1])
        assert total <= burst + rate * (admitted[end][0] - admitted[start][0]) + 1e-6


def _refusal(queue: PolicyQueue[Any], count: int, now: float) -> RateExceeded | None:
    """Submit; what was raised."""
    try:
        queue.submit(rows("a", count), now)
    except RateExceeded as error:
        return error
    return None


def test_rejected_rows_use_no_rate(queue: PolicyQueue[Any]) -> None:
    queue.change_vfm("a", VfmPolicy(max_queue_size=2, rate=1, burst=3), 0)
    with pytest.raises(QueueFull):
        queue.submit(rows("a", 3), 0)
    queue.submit(rows("a", 2), 0)
    queue.next_batch(0)
    queue.submit(rows("a", 1), 0)
    with pytest.raises(Rejected):
        queue.submit(rows("a", 1), 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_thousand_vfms_are_quick(policy: PolicyName) -> None:
    """A decision looks at those it serves, not at all."""
    queue = make_queue(policy, 64, COST)
    for i in range(10_000):
        queue.add_vfm(f"vfm{i}", VfmPolicy(), 0)
        queue.submit(rows(f"vfm{i}", 2), 0)
    looked_at = _count_looks(queue)
    for i in range(200):
        queue.complete(batch_of(queue, i * 0.01), 0.01, i * 0.01)
    assert looked_at["n"] < 200 * 64 * 8


def _count_looks(queue: PolicyQueue[Any]) -> dict[str, int]:
    """Count how often a vFM's room is asked for: every look at a vFM asks it."""
    seen = {"n": 0}
    kind = type(next(iter(queue._vfms.values())))
    plain = kind.room.fget

    class Watched(kind):  # type: ignore[misc, valid-type]
        __slots__ = ()

        @property
        def room(self) -> bool:
            seen["n"] += 1
            return bool(plain(self))

    for state in queue._vfms.values():
        state.__class__ = Watched
    return seen
