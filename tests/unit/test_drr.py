"""What is particular to deficit round robin. What every queue does: ``test_queue_contract.py``."""

from __future__ import annotations

import pytest

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.drr import DeficitRoundRobinQueue
from fmplex_backend.scheduling.interface import Batch, Row, VfmPolicy

MAX_BATCH = 4
COST = CostModel(alpha=5e-3, beta=1e-4, gamma=1e-4)


def rows(vfm: str, count: int, size: int = 8) -> list[Row]:
    return [Row(vfm, size, payload=i) for i in range(count)]


def queue_of(weights: dict[str, float]) -> DeficitRoundRobinQueue:
    queue = DeficitRoundRobinQueue(MAX_BATCH, COST)
    for name, weight in weights.items():
        queue.add_vfm(name, VfmPolicy(weight=weight), 0)
    return queue


def batch_of(queue: DeficitRoundRobinQueue) -> Batch:
    batch = queue.next_batch(0).batch
    assert batch is not None
    return batch


def charged(queue: DeficitRoundRobinQueue, sizes: dict[str, int], batches: int, slow: float = 1.0) -> dict[str, float]:
    """Seconds charged to each vFM, on a device that takes ``slow`` times what it should.

    All of them have two full batches of rows of these sizes waiting, all the time.
    """
    seconds: dict[str, float] = {}
    for _ in range(batches):
        for name, size in sizes.items():
            while queue.waiting(name) < 2 * MAX_BATCH:
                queue.submit(rows(name, MAX_BATCH, size), 0)
        batch = batch_of(queue)
        took = slow * COST.batch((row.size for row in batch.rows), len(batch.shares))
        for name, charge in queue.complete(batch, took, 0).items():
            seconds[name] = seconds.get(name, 0.0) + charge
    return seconds


def test_a_batch_is_one_vfms_and_turns_go_round() -> None:
    queue = queue_of({"a": 1, "b": 1, "c": 1})
    for name in "abc":
        queue.submit(rows(name, 6), 0)
    seen = []
    while queue.waiting():
        batch = batch_of(queue)
        assert len(batch.shares) == 1
        seen.append((batch.rows[0].vfm, len(batch.rows)))
        queue.complete(batch, batch.predicted, 0)
    assert seen == [("a", 4), ("b", 4), ("c", 4), ("a", 2), ("b", 2), ("c", 2)]


@pytest.mark.parametrize("slow", [0.5, 1.0, 2.0])
def test_shares_of_device_time_are_by_weight_whatever_the_lengths(slow: float) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    seconds = charged(queue_of(weights), {"a": 8, "b": 100, "c": 30}, 700, slow)
    total, whole = sum(seconds.values()), sum(weights.values())
    for name, weight in weights.items():
        assert seconds[name] / total == pytest.approx(weight / whole, rel=0.03)


def test_tiny_weights_are_not_waited_for_in_rounds() -> None:
    """Debts of thousands of quanta are skipped at once, not visited one by one."""
    queue = queue_of({"a": 1e-6, "b": 1e6})
    seconds = charged(queue, {"a": 8, "b": 8}, 50)
    assert seconds.get("a", 0.0) < seconds["b"] / 40
    for row in queue.drain():
        assert row.state == "running"
    assert charged(queue, {"a": 8}, 5)["a"] > 0


def test_idle_time_is_no_credit_and_debt_stays() -> None:
    queue = queue_of({"a": 1, "b": 1})
    queue.submit(rows("a", 1), 0)
    batch = batch_of(queue)
    queue.complete(batch, 3 * batch.predicted, 0)
    charged(queue, {"b": 8}, 20)
    queue.drain()
    seconds = charged(queue, {"a": 8, "b": 8}, 20)
    assert seconds["a"] <= seconds["b"]
    assert seconds["b"] - seconds["a"] < 4 * COST.batch([8] * MAX_BATCH, 1)
