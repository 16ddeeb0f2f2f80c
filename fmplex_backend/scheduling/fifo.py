"""First come, first served: the oldest rows of whichever vFM, up to the batch limit."""

from __future__ import annotations

from collections import deque

from fmplex_backend.scheduling.interface import Batch, Decision, Queue, QueueFull, Row, VfmPolicy


class FifoQueue(Queue):
    """One queue over all vFMs. Weights mean nothing to it; queue sizes and deadlines are kept."""

    def __init__(self, max_batch_rows: int) -> None:
        """``max_batch_rows``: most rows in a batch."""
        self._max_batch_rows = max_batch_rows
        self._rows: deque[Row] = deque()
        self._policies: dict[str, VfmPolicy] = {}
        self._waiting: dict[str, int] = {}
        self._number = 0

    def add_vfm(self, vfm: str, policy: VfmPolicy) -> None:
        """See `Queue`."""
        if vfm in self._policies:
            raise ValueError(f"vFM {vfm!r} is known already")
        self._policies[vfm] = policy
        self._waiting.setdefault(vfm, 0)

    def change_vfm(self, vfm: str, policy: VfmPolicy) -> None:
        """See `Queue`."""
        if vfm not in self._policies:
            raise KeyError(vfm)
        self._policies[vfm] = policy

    def remove_vfm(self, vfm: str) -> None:
        """See `Queue`."""
        del self._policies[vfm]
        if not self._waiting[vfm]:
            del self._waiting[vfm]

    def submit(self, rows: list[Row], now: float) -> None:
        """See `Queue`."""
        vfm = rows[0].vfm
        limit = self._policies[vfm].max_queue_size
        if self._waiting[vfm] + len(rows) > limit:
            for row in rows:
                row.state = "rejected"
            raise QueueFull(vfm, len(rows), self._waiting[vfm], limit)
        for row in rows:
            row.state, row.submitted = "waiting", now
        self._waiting[vfm] += len(rows)
        self._rows.extend(rows)

    def cancel(self, row: Row) -> bool:
        """See `Queue`. The row leaves the queue when its turn comes."""
        if row.state != "waiting":
            return False
        row.state = "cancelled"
        self._leave(row)
        return True

    def next_batch(self, now: float) -> Decision:
        """See `Queue`."""
        taken: list[Row] = []
        expired: list[Row] = []
        while self._rows and len(taken) < self._max_batch_rows:
            row = self._rows.popleft()
            if row.state == "cancelled":
                continue
            self._leave(row)
            if row.deadline is not None and row.deadline <= now:
                row.state = "expired"
                expired.append(row)
            else:
                row.state = "running"
                taken.append(row)
        if not taken:
            return Decision(None, expired)
        self._number += 1
        return Decision(Batch(self._number, tuple(taken)), expired)

    def complete(self, batch: Batch, measured: float, now: float) -> None:
        """See `Queue`."""
        for row in batch.rows:
            row.state = "served"

    def put_back(self, batch: Batch, now: float) -> None:
        """See `Queue`."""
        for row in batch.rows:
            row.state = "waiting"
            self._waiting[row.vfm] = self._waiting.get(row.vfm, 0) + 1
        self._rows.extendleft(reversed(batch.rows))

    def waiting(self, vfm: str | None = None) -> int:
        """See `Queue`."""
        return sum(self._waiting.values()) if vfm is None else self._waiting.get(vfm, 0)

    def _leave(self, row: Row) -> None:
        self._waiting[row.vfm] -= 1
        if not self._waiting[row.vfm] and row.vfm not in self._policies:
            del self._waiting[row.vfm]
