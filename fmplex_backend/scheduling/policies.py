"""The policies by name, as a physical FM's ``policy`` parameter gives it."""

from __future__ import annotations

from typing import Any, Literal

from fmplex_backend.scheduling.base import PolicyQueue
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.drr import DeficitRoundRobinQueue
from fmplex_backend.scheduling.fair import BatchFairQueue
from fmplex_backend.scheduling.fifo import FifoQueue
from fmplex_backend.scheduling.vtc import TokenCounterQueue

PolicyName = Literal["fair", "fifo", "drr", "vtc"]


def make_queue(policy: PolicyName, max_batch_rows: int, cost: CostModel) -> PolicyQueue[Any]:
    """An empty queue of that policy."""
    queues: dict[PolicyName, type[PolicyQueue[Any]]] = {
        "fair": BatchFairQueue,
        "fifo": FifoQueue,
        "drr": DeficitRoundRobinQueue,
        "vtc": TokenCounterQueue,
    }
    return queues[policy](max_batch_rows, cost)
