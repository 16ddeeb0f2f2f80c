"""What is particular to first come, first served. What every queue does: ``test_queue_contract.py``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fifo import FifoQueue
from fmplex_backend.scheduling.interface import Batch, Row, VfmPolicy

MAX_BATCH = 4


def rows(vfm: str, count: int, size: int = 8) -> list[Row]:
    return [Row(vfm, size, payload=i) for i in range(count)]


def next_rows(queue: FifoQueue) -> list[Row]:
    batch: Batch | None = queue.next_batch(0).batch
    assert batch is not None
    return list(batch.rows)


@pytest.fixture
def queue() -> FifoQueue:
    queue = FifoQueue(MAX_BATCH, CostModel(alpha=1e-3, beta=1e-5))
    for name in "abc":
        queue.add_vfm(name, VfmPolicy(), 0)
    return queue


@given(asks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.sampled_from((1, 8, 500))), max_size=12))
def test_batches_are_full_and_in_order_of_arrival(asks: list[tuple[str, int, int]]) -> None:
    """Whosever the rows are, however long, whatever their weight."""
    queue = FifoQueue(MAX_BATCH, CostModel(alpha=1e-3, beta=1e-5))
    for weight, name in enumerate("abc", start=1):
        queue.add_vfm(name, VfmPolicy(weight=weight), 0)
    arrived = []
    for name, count, size in asks:
        new = rows(name, count, size)
        queue.submit(new, 0)
        arrived += new
    while arrived:
        assert next_rows(queue) == arrived[:MAX_BATCH]
        del arrived[:MAX_BATCH]


def test_batches_mix_vfms(queue: FifoQueue) -> None:
    for name in "abcab":
        queue.submit(rows(name, 1), 0)
    assert [row.vfm for row in next_rows(queue)] == ["a", "b", "c", "a"]


def test_a_vfm_that_may_run_no_more_rows_keeps_its_places(queue: FifoQueue) -> None:
    queue.change_vfm("a", VfmPolicy(max_rows_in_flight=1), 0)
    queue.submit(rows("a", 3), 0)
    queue.submit(rows("b", 2), 0)
    assert [row.vfm for row in next_rows(queue)] == ["a", "b", "b"]
    queue.submit(rows("b", 3), 0)
    queue.change_vfm("a", VfmPolicy(), 0)
    assert [row.vfm for row in next_rows(queue)] == ["a", "a", "b", "b"]
