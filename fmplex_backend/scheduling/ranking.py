"""Items by key, the least first: a heap in which only an item's newest entry counts.

Moving an item costs O(log items): its old entry stays until it comes to the front or stale ones prevail.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT", bound=Hashable)


class Ranking(Generic[ItemT]):
    """See the module. Among equal keys, who was put first is first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ItemT]] = []
        self._newest: dict[ItemT, int] = {}
        """Item → number of its entry that counts."""
        self._numbers = itertools.count()

    def __contains__(self, item: ItemT) -> bool:
        return item in self._newest

    def __len__(self) -> int:
        """Entries that are kept, the stale ones too."""
        return len(self._heap)

    def put(self, item: ItemT, key: float) -> None:
        """Rank ``item`` by ``key``, and no longer by another."""
        number = self._newest[item] = next(self._numbers)
        heapq.heappush(self._heap, (key, number, item))
        self._sweep()

    def remove(self, item: ItemT) -> None:
        """Rank ``item`` no more; nothing happens where it is not ranked."""
        if self._newest.pop(item, None) is not None:
            self._sweep()

    def least(self) -> ItemT | None:
        """The item with the least key."""
        heap, newest = self._heap, self._newest
        while heap:
            _, number, item = heap[0]
            if newest.get(item) == number:
                return item
            heapq.heappop(heap)
        return None

    def about_least(self, limit: int) -> list[ItemT]:
        """At most ``limit`` items near the front, in no exact order; costs O(limit)."""
        return [item for _, number, item in self._heap[:limit] if self._newest.get(item) == number]

    def set_aside(self) -> tuple[float, int, ItemT]:
        """Hide what `least` has just given, until the entry that this returns is handed to `bring_back`."""
        return heapq.heappop(self._heap)

    def bring_back(self, entries: Iterable[tuple[float, int, ItemT]]) -> None:
        """End `set_aside`: everything is in its old place again."""
        for entry in entries:
            heapq.heappush(self._heap, entry)

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._newest) + 64:
            self._heap = [entry for entry in self._heap if self._newest.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
