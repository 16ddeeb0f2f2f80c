"""What is particular to the virtual token counter. What every queue does: ``test_queue_contract.py``."""

from __future__ import annotations

from collections import Counter

import pytest

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import Batch, Row, VfmPolicy
from fmplex_backend.scheduling.vtc import TokenCounterQueue

MAX_BATCH = 4
COST = CostModel(alpha=5e-3, beta=1e-4, gamma=1e-4)


def rows(vfm: str, count: int, size: int = 8) -> list[Row]:
    return [Row(vfm, size, payload=i) for i in range(count)]


def queue_of(weights: dict[str, float]) -> TokenCounterQueue:
    queue = TokenCounterQueue(MAX_BATCH, COST)
    for name, weight in weights.items():
        queue.add_vfm(name, VfmPolicy(weight=weight), 0)
    return queue


def batch_of(queue: TokenCounterQueue) -> Batch:
    batch = queue.next_batch(0).batch
    assert batch is not None
    return batch


def served(queue: TokenCounterQueue, sizes: dict[str, int], batches: int) -> Counter[str]:
    """Tokens served to each vFM while all of them stay backlogged."""
    tokens: Counter[str] = Counter()
    for _ in range(batches):
        for name, size in sizes.items():
            if queue.waiting(name) < MAX_BATCH:
                queue.submit(rows(name, MAX_BATCH, size), 0)
        batch = batch_of(queue)
        assert len(batch.rows) == MAX_BATCH
        queue.complete(batch, batch.predicted, 0)
        for row in batch.rows:
            tokens[row.vfm] += row.size
    return tokens


def test_vfms_share_batches_least_counter_first() -> None:
    queue = queue_of({"a": 1, "b": 1})
    queue.submit(rows("a", 6, 10), 0)
    queue.submit(rows("b", 6, 30), 0)
    assert [row.vfm for row in batch_of(queue).rows] == ["a", "b", "a", "a"]
    assert (queue.counter("a"), queue.counter("b")) == (30, 30)


def test_shares_of_tokens_are_by_weight_whatever_the_lengths() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    tokens = served(queue_of(weights), {"a": 8, "b": 100, "c": 30}, 700)
    total, whole = sum(tokens.values()), sum(weights.values())
    for name, weight in weights.items():
        assert tokens[name] / total == pytest.approx(weight / whole, rel=0.05)


def test_who_wakes_up_is_lifted_to_the_least_active_counter() -> None:
    queue = queue_of({"a": 1, "b": 1, "c": 1})
    served(queue, {"b": 10, "c": 20}, 30)
    least = min(queue.counter("b"), queue.counter("c"))
    queue.submit(rows("a", 1), 0)
    assert queue.counter("a") == least > 0


def test_who_wakes_up_alone_is_lifted_to_whoever_was_active_last() -> None:
    queue = queue_of({"a": 1, "b": 1})
    queue.submit(rows("b", MAX_BATCH, 25), 0)
    queue.complete(batch_of(queue), 0.01, 0)
    queue.submit(rows("a", 1), 0)
    assert queue.counter("a") == queue.counter("b") == 100


def test_rows_put_back_are_not_counted() -> None:
    queue = queue_of({"a": 2})
    queue.submit(rows("a", 3, 10), 0)
    batch = batch_of(queue)
    assert queue.counter("a") == 15
    queue.put_back(batch, 0)
    assert queue.counter("a") == 0
