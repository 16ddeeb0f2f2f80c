"""The batch-aware fair queue's rules, one by one, and its shares against an independent max-min oracle."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import BatchFairQueue, Tuning
from fmplex_backend.scheduling.interface import Batch, QueueFull, RateExceeded, Row, VfmPolicy

COST = CostModel(alpha=10e-3, beta=1e-4, gamma=1e-4)


def rows(vfm: str, *sizes: int, deadline: float | None = None) -> list[Row]:
    return [Row(vfm, size, None, deadline) for size in sizes]


def queue_of(*names: str, max_batch_rows: int = 16, cost: CostModel = COST, **options: VfmPolicy) -> BatchFairQueue:
    """A queue with these vFMs; ``options`` gives policies by name."""
    queue = BatchFairQueue(max_batch_rows, cost)
    for name in names:
        queue.add_vfm(name, options.get(name, VfmPolicy(max_queue_size=100_000)), 0.0)
    return queue


def batch_of(queue: BatchFairQueue, now: float) -> Batch:
    batch = queue.next_batch(now).batch
    assert batch is not None
    return batch


def run(queue: BatchFairQueue, now: float, measured: float | None = None) -> Batch:
    """Decide a batch and complete it at its predicted cost, or at ``measured``."""
    batch = batch_of(queue, now)
    queue.complete(batch, batch.predicted if measured is None else measured, now)
    return batch


def saturate(
    queue: BatchFairQueue, draw: Callable[[str], int], seconds: float, noise: Callable[[], float] = lambda: 1.0
) -> dict[str, float]:
    """Keep every vFM's line at 40 rows for so many seconds of device time: device time charged, by vFM."""
    now, charged = 0.0, Counter[str]()
    names = list(queue._vfms)
    while now < seconds:
        for name in names:
            if (missing := 40 - queue.waiting(name)) > 0:
                queue.submit(rows(name, *(draw(name) for _ in range(missing))), now)
        batch = batch_of(queue, now)
        measured = queue.cost.batch([row.size for row in batch.rows], len(batch.shares)) * noise()
        now += measured
        charged.update(queue.complete(batch, measured, now))
    return dict(charged)


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


# ---- shares ----


@pytest.mark.parametrize("lengths", [(16,), (8, 16, 40, 120)], ids=["fixed", "mixed"])
@pytest.mark.parametrize("hiccups", [False, True], ids=["steady", "hiccups"])
def test_saturated_shares_follow_the_weights(lengths: tuple[int, ...], hiccups: bool) -> None:
    rng = random.Random(1)
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    queue = queue_of(*weights, **{n: VfmPolicy(w, 100_000) for n, w in weights.items()})

    def noise() -> float:
        return 50.0 if hiccups and rng.random() < 0.01 else rng.uniform(0.8, 1.25)

    charged = saturate(queue, lambda _: rng.choice(lengths), 120, noise)
    total = sum(charged.values())
    for name, weight in weights.items():
        assert charged[name] / total == pytest.approx(weight / 7, rel=0.02)
    assert jain([charged[name] / weight for name, weight in weights.items()]) >= 0.99


def test_long_rows_get_no_more_device_time_than_short_ones() -> None:
    queue = queue_of("short", "long")
    charged = saturate(queue, lambda name: 10 if name == "short" else 200, 60)
    assert charged["short"] == pytest.approx(charged["long"], rel=0.02)


def test_ninety_two_vfms_of_many_weights_get_their_shares() -> None:
    rng = random.Random(2)
    weights = {f"v{i}": rng.choice((0.25, 0.5, 1.0, 2.0, 4.0)) for i in range(92)}
    queue = queue_of(*weights, max_batch_rows=64, **{n: VfmPolicy(w, 100_000) for n, w in weights.items()})
    charged = saturate(queue, lambda _: rng.choice((12, 16, 30)), 200)
    assert jain([charged[name] / weight for name, weight in weights.items()]) >= 0.99


def max_min(demands: dict[str, float], weights: dict[str, float], capacity: float) -> dict[str, float]:
    """Weighted max-min allocation by filling up: whoever wants less than his part gets it, the rest is divided anew."""
    given: dict[str, float] = {}
    open_ = dict(demands)
    while open_:
        level = (capacity - sum(given.values())) / sum(weights[name] for name in open_)
        satisfied = [name for name, demand in open_.items() if demand <= level * weights[name] * (1 + 1e-12)]
        if not satisfied:
            return given | {name: level * weights[name] for name in open_}
        for name in satisfied:
            given[name] = open_.pop(name)
    return given


@pytest.mark.parametrize("seed", range(4))
def test_max_min_oracle_agrees(seed: int) -> None:
    """Open-loop arrivals, some below their share and some above: device time goes as max-min says."""
    rng = random.Random(seed)
    names = [f"v{i}" for i in range(8)]
    weights = {name: rng.choice((0.5, 1.0, 2.0, 4.0)) for name in names}
    rates = {name: rng.choice((4.0, 20.0, 60.0, 400.0)) for name in names}
    sizes = {name: rng.choice((12, 24, 48)) for name in names}
    rates[names[0]] = 2000.0  # somebody always wants more
    queue = queue_of(*names, max_batch_rows=32, **{n: VfmPolicy(weights[n], 200) for n in names})
    heads = {name: rng.expovariate(rates[name]) for name in names}
    charged, served, arrived = Counter[str](), Counter[str](), Counter[str]()
    now, span = 0.0, 60.0
    while now < span:
        for name in names:
            while heads[name] <= now:
                heads[name] += rng.expovariate(rates[name])
                arrived[name] += 1
                try:
                    queue.submit(rows(name, sizes[name]), now)
                except QueueFull:
                    continue
        batch = queue.next_batch(now).batch
        if batch is None:
            now += 1e-3
            continue
        now += batch.predicted
        charged.update(queue.complete(batch, batch.predicted, now))
        for name, share in batch.shares.items():
            served[name] += share.rows
    demands = {name: arrived[name] * charged[name] / served[name] for name in names}
    expected = max_min(demands, weights, sum(charged.values()))
    for name in names:
        assert charged[name] == pytest.approx(expected[name], rel=0.04, abs=0.005 * span), (name, rates[name])


# ---- rule 1: wake-up ----


def test_credit_is_not_hoarded() -> None:
    """Who was away for long does not get everything when he comes back."""
    queue = queue_of("a", "b")
    for turn in range(200):
        queue.submit(rows("a", *[16] * 16), turn)
        run(queue, turn)
    queue.submit(rows("a", *[16] * 200), 200)
    queue.submit(rows("b", *[16] * 200), 200)
    got = Counter[str]()
    for turn in range(10):
        for name, share in run(queue, 201 + turn).shares.items():
            got[name] += share.rows
    assert abs(got["a"] - got["b"]) <= 8


def test_debt_is_kept_over_a_short_pause() -> None:
    """Emptying one's line for a moment does not wash away what one has just had."""
    queue = queue_of("a", "b")
    queue.submit(rows("b", *[16] * 100), 0)
    queue.submit(rows("a", *[16] * 4), 0)
    first = batch_of(queue, 0)
    assert first.shares["a"].rows == 4
    debt = queue.tag("a")
    queue.complete(first, 3 * first.predicted, 0.1)  # it took longer than thought
    queue.submit(rows("a", 16), 0.1)
    assert queue.tag("a") > debt
    assert queue.tag("a") > queue.virtual_time


# ---- rules 2, 4 and 8: deadlines and objectives ----


def test_an_objective_puts_rows_first_and_bounds_the_batches() -> None:
    policy = VfmPolicy(max_queue_size=10_000, latency_slo=0.06)
    queue = queue_of("flood", "light", light=policy, max_batch_rows=64)
    queue.submit(rows("flood", *[50] * 500), 0)
    for turn in range(5):
        run(queue, turn)
    queue.submit(rows("light", 20), 10.0)
    batch = batch_of(queue, 10.0)
    assert batch.rows[0].vfm == "light"
    assert batch.predicted <= 0.02 + 1e-9, "a third of the objective"
    queue.complete(batch, batch.predicted, 10.1)
    assert batch_of(queue, 10.2).predicted <= 0.02 + 1e-9, "still, while it is active"
    long_after = batch_of(queue, 30.0)
    assert long_after.predicted > 0.02


def test_an_objective_that_no_batch_can_meet_does_not_collapse_throughput() -> None:
    policy = VfmPolicy(max_queue_size=10_000, latency_slo=1e-3)
    queue = queue_of("flood", "light", light=policy, max_batch_rows=64)
    queue.submit(rows("flood", *[10] * 100), 0)
    queue.submit(rows("light", *[10] * 4), 0)
    assert len(batch_of(queue, 0).rows) == 4, "as many as one and a half launches pay for"


def test_urgency_is_not_a_way_around_the_share() -> None:
    """A vFM that gives all its rows an objective gets its share and no more."""
    greedy = VfmPolicy(max_queue_size=100_000, latency_slo=0.5)
    queue = queue_of("greedy", "meek", greedy=greedy)
    charged = saturate(queue, lambda _: 16, 60)
    assert charged["greedy"] == pytest.approx(charged["meek"], rel=0.02)


def test_rows_that_would_be_late_are_not_run() -> None:
    queue = queue_of("a")
    queue.submit(rows("a", 16), 0)
    run(queue, 0)  # the model is trusted now
    soon, later = rows("a", 100, deadline=0.015), rows("a", 16, deadline=0.5)
    queue.submit(soon, 0.01)
    queue.submit(later, 0.01)
    decision = queue.next_batch(0.01)
    assert decision.expired == soon, "100 tokens take 20 ms"
    assert decision.batch is not None
    assert list(decision.batch.rows) == later


def test_a_wrong_model_does_not_refuse_for_ever() -> None:
    """Where nothing was measured lately a prediction alone expires nobody, so that k can learn better."""
    queue = queue_of("a", cost=CostModel(alpha=10.0, beta=1.0))
    now = 0.0
    expired = 0
    for _ in range(2000):
        queue.submit(rows("a", 1, deadline=now + 0.5), now)
        decision = queue.next_batch(now)
        expired += len(decision.expired)
        if decision.batch is not None:
            queue.complete(decision.batch, 0.01, now + 0.01)
        now += 0.1
    assert queue.k < 0.05
    assert expired < 1500
    queue.submit(rows("a", 1, deadline=now + 0.5), now)
    assert queue.next_batch(now).batch is not None


def test_expire_tells_when_to_come_back() -> None:
    queue = queue_of("a", a=VfmPolicy(max_rows_in_flight=1))
    queue.submit(rows("a", 16), 0)
    batch_of(queue, 0)
    late = rows("a", 16, deadline=5.0)
    queue.submit(late, 0)
    assert queue.expire(1.0).wake_at == 5.0
    assert queue.expire(5.0).expired == late
    assert queue.expire(5.0).wake_at is None


# ---- rule 3: fair fill ----


def test_a_single_row_is_not_held_back_by_a_big_request() -> None:
    """64 rows of one vFM, then one of another: it is in the very next batch."""
    queue = queue_of("big", "small", max_batch_rows=16)
    queue.submit(rows("big", *[16] * 64), 0)
    queue.submit(rows("small", 16), 0)
    assert "small" in batch_of(queue, 0).shares
    queue.submit(rows("small", 16), 0.01)
    assert "small" in batch_of(queue, 0.02).shares


def test_a_long_row_that_does_not_fit_opens_the_next_batch() -> None:
    """Short rows of others may run before it, but only so far (T), then it is first."""
    queue = queue_of("short", "long", max_batch_rows=64)
    queue.submit(rows("short", *[8] * 1000), 0)
    for turn in range(3):
        run(queue, turn)
    queue.submit(rows("long", 500), 5)
    waited = 0
    while "long" not in run(queue, 5 + waited).shares:
        waited += 1
        assert waited <= 3
    assert waited <= 1


def test_rows_of_a_length_go_together() -> None:
    """One vFM with two lengths: batches hold one or the other, and both advance."""
    queue = queue_of("a", max_batch_rows=8, cost=CostModel(alpha=5e-3, beta=1e-3))
    queue.submit(rows("a", *[10, 300] * 40), 0)
    kinds = Counter[frozenset[int]]()
    for turn in range(12):
        kinds[frozenset(row.size for row in run(queue, turn).rows)] += 1
    assert set(kinds) == {frozenset({10}), frozenset({300})}


def test_a_vfm_with_only_cancelled_rows_blocks_nobody() -> None:
    queue = queue_of("ghost", "alive")
    dead = rows("ghost", *[500] * 50)
    queue.submit(dead, 0)
    for row in dead:
        assert queue.cancel(row)
    queue.submit(rows("alive", *[16] * 30), 0)
    assert run(queue, 0).shares.keys() == {"alive"}
    assert queue.virtual_time == 0 or queue.virtual_time < queue.tag("alive")
    assert queue.waiting("ghost") == 0


def test_rows_in_flight_are_bounded_and_hold_nobody_else() -> None:
    queue = queue_of("a", "b", a=VfmPolicy(max_rows_in_flight=3, max_queue_size=100))
    queue.submit(rows("a", *[16] * 20), 0)
    queue.submit(rows("b", *[16] * 40), 0)
    first = batch_of(queue, 0)
    assert first.shares["a"].rows == 3
    second = batch_of(queue, 0)  # another engine
    assert "a" not in second.shares
    queue.complete(first, first.predicted, 1)
    assert batch_of(queue, 1).shares["a"].rows == 3


# ---- rules 6 and 7: charges ----


def test_one_hiccup_does_not_starve_whoever_was_running() -> None:
    """A batch that took 2 s for 20 ms is charged at most three times its prediction."""
    queue = queue_of("a", "b")
    queue.submit(rows("a", *[16] * 10), 0)
    run(queue, 0, measured=2.0)
    queue.submit(rows("a", *[16] * 400), 2)
    queue.submit(rows("b", *[16] * 400), 2)
    assert any("a" in run(queue, 2 + turn).shares for turn in range(4))


def test_k_follows_the_device() -> None:
    queue = queue_of("a")
    for turn in range(200):
        queue.submit(rows("a", *[16] * 8), turn)
        batch = batch_of(queue, turn)
        queue.complete(batch, 2.0 * COST.batch([16] * 8, 1), turn)
    assert queue.k == pytest.approx(2.0, rel=0.01)
    queue.change_cost(CostModel(alpha=20e-3, beta=2e-4))
    assert queue.k == 1.0


def test_put_back_refunds_and_goes_first() -> None:
    queue = queue_of("a", "b")
    first = rows("a", *[16] * 3)
    queue.submit(first, 0)
    before = queue.tag("a")
    batch = batch_of(queue, 0)
    queue.submit(rows("a", *[16] * 3), 0)
    queue.put_back(batch, 1)
    assert queue.tag("a") == pytest.approx(before)
    assert list(batch_of(queue, 1).rows)[:3] == first


# ---- admission ----


def test_full_queue_says_how_long_to_wait() -> None:
    queue = queue_of("a", "b", a=VfmPolicy(max_queue_size=100), max_batch_rows=8)
    queue.submit(rows("a", *[16] * 100), 0)
    queue.submit(rows("b", *[16] * 100), 0)
    for turn in range(10):
        run(queue, turn)
    room = queue.waiting("a")
    queue.submit(rows("a", *[16] * (100 - room)), 10)
    with pytest.raises(QueueFull) as caught:
        queue.submit(rows("a", *[16] * 20), 10)
    now = 10.0
    while queue.waiting("a") > 80:
        queue.submit(rows("b", *[16] * 8), now)
        now += run(queue, now).predicted
    assert caught.value.wait == pytest.approx(now - 10, rel=0.5), "with b backlogged, too"
    assert not caught.value.hopeless


def test_rate_limit_with_burst() -> None:
    queue = queue_of("a", a=VfmPolicy(rate=10.0, burst=5))
    for _ in range(10):
        queue.check("a", 5, 0)  # asking costs nothing
    queue.submit(rows("a", *[16] * 5), 0)
    with pytest.raises(RateExceeded):
        queue.check("a", 2, 0.1)
    with pytest.raises(RateExceeded) as caught:
        queue.submit(rows("a", 16, 16), 0.1)
    assert caught.value.wait == pytest.approx(0.1)
    queue.submit(rows("a", 16, 16), 0.2)
    with pytest.raises(RateExceeded) as caught:
        queue.submit(rows("a", *[16] * 6), 100)
    assert caught.value.hopeless
    queue.submit(rows("a", *[16] * 5), 100)
    queue.change_vfm("a", VfmPolicy(rate=10.0, burst=50), 100)
    with pytest.raises(RateExceeded):
        queue.submit(rows("a", *[16] * 5), 100)  # a larger burst fills at the rate


def test_weight_change_acts_on_the_next_decision() -> None:
    queue = queue_of("a", "b", max_batch_rows=8)
    for name in "ab":
        queue.submit(rows(name, *[16] * 1000), 0)
    for turn in range(10):
        run(queue, turn)
    queue.change_vfm("a", VfmPolicy(weight=4, max_queue_size=100_000), 10)
    got = Counter[str]()
    for turn in range(20):
        for name, share in run(queue, 10 + turn).shares.items():
            got[name] += share.rows
    assert got["a"] / got["b"] == pytest.approx(4, rel=0.15)


# ---- size ----


def test_memory_stays_bounded_over_a_long_life() -> None:
    """Tombstones, settled tags and policy edits leave nothing behind."""
    rng = random.Random(3)
    names = [f"v{i}" for i in range(50)]
    queue = queue_of(*names, **{n: VfmPolicy(latency_slo=0.5) for n in names})
    for turn in range(3000):
        now = turn * 0.05
        for name in rng.sample(names, 3):
            fresh = rows(name, *(rng.choice((8, 40, 200)) for _ in range(2)), deadline=now + rng.choice((0.1, 1000)))
            queue.submit(fresh, now)
            if rng.random() < 0.5:
                queue.cancel(rng.choice(fresh))
        name = rng.choice(names)
        queue.change_vfm(name, VfmPolicy(latency_slo=rng.choice((0.2, 0.5, 1.0))), now)
        decision = queue.next_batch(now)
        if decision.batch is not None:
            queue.complete(decision.batch, decision.batch.predicted, now)
    slack = 2 * queue.waiting() + 2 * len(names) + 256
    assert queue.waiting() < 2000
    for heap in (queue._least, queue._due, queue._deadlines, queue._objectives):
        assert len(heap) <= slack
    for state in queue._vfms.values():
        assert sum(len(line) for line in state.classes.values()) <= 2 * state.waiting + 96


def test_starved_vfm_that_submits_and_cancels_does_not_grow() -> None:
    queue = queue_of("a", a=VfmPolicy(max_rows_in_flight=1, max_queue_size=10))
    queue.submit(rows("a", 16), 0)
    batch_of(queue, 0)
    queue.submit(rows("a", 16), 0)  # stays at the front of its line, since nothing may run
    for turn in range(5000):
        (row,) = rows("a", 16, deadline=1e6)
        queue.submit([row], turn)
        queue.cancel(row)
        if turn % 100 == 0:
            queue.expire(turn)
    state = queue._vfms["a"]
    assert sum(len(line) for line in state.classes.values()) < 200
    assert len(queue._deadlines) < 400
    queue.next_batch(6000)
    assert len(queue._due) < 400


def decision_seconds(vfms: int) -> float:
    """Least time of a decision for 32 rows of 32 vFMs, of so many that are backlogged."""
    queue = queue_of(*(f"v{i}" for i in range(vfms)), max_batch_rows=32, cost=CostModel(alpha=0.1, beta=1e-5))
    for i in range(vfms):
        queue.submit(rows(f"v{i}", *[16] * 50), 0)
    best = 1.0
    for turn in range(40):
        started = time.perf_counter()
        decision = queue.next_batch(turn)
        best = min(best, time.perf_counter() - started)
        assert decision.batch is not None
        assert len(decision.batch.rows) == 32
        queue.complete(decision.batch, decision.batch.predicted, turn)
        for name, share in decision.batch.shares.items():
            queue.submit(rows(name, *[16] * share.rows), turn)
    return best


def test_a_decision_over_ten_thousand_vfms_takes_less_than_three_times_one_over_sixteen() -> None:
    ratio = min(decision_seconds(10_000) / decision_seconds(16) for _ in range(3))
    assert ratio < 3


def test_tuning_is_obeyed() -> None:
    queue = BatchFairQueue(64, COST, tuning=Tuning(c_cap=2.0))
    queue.add_vfm("a", VfmPolicy(), 0)
    queue.submit(rows("a", *[16] * 64), 0)
    assert batch_of(queue, 0).predicted <= 2 * COST.alpha


def test_many_vfms_with_rows_of_many_lengths_still_fill_their_batches() -> None:
    """The padding that a batch may waste is not used up by whoever comes first in the order of v."""
    rng = random.Random(4)
    names = [f"v{i}" for i in range(92)]
    queue = queue_of(*names, max_batch_rows=64, cost=CostModel(alpha=5e-3, beta=2e-6, gamma=2e-5))
    for name in names:
        queue.submit(rows(name, *(round(2 ** rng.uniform(3, 8)) for _ in range(20))), 0)
    taken = 0
    for turn in range(20):
        taken += len(run(queue, turn).rows)
    assert taken / 20 > 40


def test_batches_are_shorter_while_vfms_come_and_go() -> None:
    queue = queue_of("flood", "light", max_batch_rows=500)
    queue.submit(rows("flood", *[16] * 5000), 0)
    launch = COST.alpha
    assert 31 * launch < run(queue, 0).predicted <= 32 * launch
    queue.submit(rows("light", 16), 0.5)
    assert 11 * launch < batch_of(queue, 0.6).predicted <= 12 * launch
    assert 31 * launch < batch_of(queue, 2.0).predicted


def test_a_row_that_is_nearly_due_goes_before_the_least_v_but_only_within_t() -> None:
    queue = queue_of("a", "b", max_batch_rows=1, b=VfmPolicy(latency_slo=0.02))
    queue.submit(rows("b", 16), 0)
    queue.submit(rows("a", *[16] * 5), 0)
    assert [row.vfm for row in run(queue, 0).rows] == ["b"], "it was there first"
    queue.submit(rows("b", 16, 16), 0.1)
    assert queue.tag("a") < queue.tag("b") < queue.tag("a") + queue.tolerance
    assert [row.vfm for row in run(queue, 0.1).rows] == ["b"], "nearly due, and not too far ahead"
    assert queue.tag("b") > queue.tag("a") + queue.tolerance
    assert [row.vfm for row in run(queue, 0.1).rows] == ["a"], "due or not, this one is too far ahead"


def test_who_does_not_fit_is_passed_over_by_those_within_t() -> None:
    queue = queue_of("first", "long", "last")
    for name, size in (("first", 8), ("long", 500), ("last", 8)):
        queue.submit(rows(name, size), 0)
    assert run(queue, 0).shares.keys() == {"first", "last"}
    assert run(queue, 0).shares.keys() == {"long"}


def test_edits_of_a_backlogged_vfm_leave_nothing_in_the_heap() -> None:
    queue = queue_of("a", "b")
    for name in "ab":
        queue.submit(rows(name, *[16] * 5), 0)
    for turn in range(1000):
        queue.change_vfm("b", VfmPolicy(weight=1 + turn % 3, latency_slo=0.1 + turn), turn)
    assert len(queue._least) < 100
    assert len(queue._objectives) < 100


# ---- twins ----


def twin(vfm: str, size: int, key: str) -> Row:
    """A row of the bare backbone with the text ``key``."""
    return Row(vfm, size, None, twin=key)


def test_twins_come_along_and_share_what_one_row_costs() -> None:
    names = [f"v{i}" for i in range(8)]
    queue = queue_of(*names, max_batch_rows=4)
    for name in names:
        queue.submit([twin(name, 32, "text")], 0)
    batch = run(queue, 0)
    assert len(batch.rows) == 8, "twins are more rows than the backbone may run"
    assert batch.physical_rows == 1
    assert batch.predicted == pytest.approx(COST.alpha + 32 * COST.beta + 8 * COST.gamma)
    assert [share.fraction for share in batch.shares.values()] == [pytest.approx(1 / 8)] * 8
    assert len({round(queue.tag(name), 12) for name in names}) == 1


def test_twins_are_cheaper_than_rows_of_their_own() -> None:
    tags = {}
    for key in ("same", "other"):
        queue = queue_of("a", "b")
        queue.submit([twin("a", 100, "same")], 0)
        queue.submit([twin("b", 100, key)], 0)
        assert run(queue, 0).physical_rows == (1 if key == "same" else 2)
        tags[key] = queue.tag("a")
    work = COST.work(100)
    assert tags["same"] == pytest.approx((COST.alpha + work) / 2 + COST.gamma)
    assert tags["other"] == pytest.approx(COST.alpha / 2 + work + COST.gamma)


def test_a_twin_of_a_vfm_that_has_had_too_much_waits() -> None:
    queue = queue_of("light", "greedy", max_batch_rows=1)
    queue.submit(rows("greedy", 400), 0)
    running = batch_of(queue, 0)
    queue.submit([twin("light", 8, "text"), *rows("light", 8)], 0)
    queue.submit([twin("greedy", 8, "text")], 0)
    queue.complete(running, 0.15, 0.15)
    assert queue.tag("greedy") > queue.tag("light") + queue.tolerance
    batch = run(queue, 0.15)
    assert [row.vfm for row in batch.rows] == ["light"]
    assert [row.vfm for row in run(queue, 0.2).rows] == ["light"]
    assert [row.vfm for row in run(queue, 0.3).rows] == ["greedy"]


def test_twins_that_were_cancelled_do_not_come_along() -> None:
    queue = queue_of("a", "b", "c")
    mine, gone, other = twin("a", 8, "x"), twin("b", 8, "x"), twin("c", 8, "x")
    for row in (mine, gone, other):
        queue.submit([row], 0)
    assert queue.cancel(gone)
    assert run(queue, 0).rows == (mine, other)


def test_twins_that_are_gone_take_no_memory() -> None:
    queue = queue_of("a")
    for i in range(2000):
        row = twin("a", 8, f"text {i}")
        queue.submit([row], 0)
        queue.cancel(row)
    assert sum(map(len, queue._twins.values())) < 200


# ---- adapters and slots ----


def adapted(vfm: str, *sizes: int) -> list[Row]:
    return [Row(vfm, size, None, adapter=vfm) for size in sizes]


def test_no_more_adapters_than_slots() -> None:
    names = [f"v{i}" for i in range(6)]
    queue = queue_of(*names, "bare")
    queue.change_slots(2)
    for name in names:
        queue.submit(adapted(name, 8, 8), 0)
    queue.submit(rows("bare", 8, 8), 0)
    seen = []
    while queue.waiting():
        batch = run(queue, 0)
        seen.append({row.adapter for row in batch.rows if row.adapter})
    assert [len(adapters) for adapters in seen] == [2, 2, 2]


def test_residents_go_first_but_not_for_ever() -> None:
    """Those with a slot go first while that costs the others at most T; nobody waits longer than that."""
    queue = queue_of("warm", "cold", max_batch_rows=2)
    queue.submit(adapted("cold", 8), 0)
    queue.submit(adapted("warm", *[8] * 100), 0)
    order = []
    for _ in range(40):
        batch = queue.next_batch(0, {"warm"}).batch
        assert batch is not None
        queue.complete(batch, batch.predicted, 0)
        order.append({row.vfm for row in batch.rows})
        if "cold" in order[-1]:
            break
    assert order[0] == {"warm"}
    assert "cold" in order[-1]
    assert queue.tag("warm") <= 2 * queue.tolerance + 0.03
    free = queue_of("warm", "cold", max_batch_rows=3)
    free.submit(adapted("cold", 8), 0)
    free.submit(adapted("warm", 8), 0)
    batch = free.next_batch(0, {"warm"}).batch
    assert batch is not None
    assert [row.vfm for row in batch.rows] == ["warm", "cold"], "what is left of a batch is anybody's"


def test_upcoming_are_those_that_have_had_least() -> None:
    names = [f"v{i}" for i in range(20)]
    queue = queue_of(*names, "bare", max_batch_rows=4)
    for name in names:
        queue.submit(adapted(name, 8), 0)
    queue.submit(rows("bare", 8), 0)
    batch = batch_of(queue, 0)
    upcoming = queue.upcoming(8)
    assert len(upcoming) == len(set(upcoming)) <= 8
    assert not {row.adapter for row in batch.rows} & set(upcoming)
    assert len(queue.upcoming(100)) == 16
