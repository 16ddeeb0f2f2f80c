"""Where the adapters of an engine are: in slots on its device, in host memory, on disk.

1. A batch's adapters are brought into slots before it runs; the scheduler never asks for more than there are. Those
   used least recently make room, pinned ones never.
2. Host memory holds what was used lately, up to a limit; the rest is read again from the packed files, which stay as
   long as their generations live. What rows that wait will need is read ahead, by a thread of its own.
3. An adapter that cannot be brought back is an error for its rows, never the bare backbone in its place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from fmplex_backend.adapters.adapter import Adapter
from fmplex_backend.adapters.bank import AdapterBank, Stamp
from fmplex_backend.engine.device_errors import is_device_fault
from fmplex_backend.errors import Refused


@dataclass
class Moves:
    """What a batch has moved: generations that came into slots, and those that had to go for them."""

    installed: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)


class AdapterTiers:
    """See the module. Used from one thread."""

    def __init__(self, bank: AdapterBank, read: Callable[[str], Adapter], memory: int) -> None:
        """``read`` makes an adapter from a packed file; ``memory``: bytes of host memory for adapters."""
        self._bank = bank
        self._read = read
        self._memory = memory
        self._paths: dict[int, str] = {}
        self._in_memory: OrderedDict[int, Adapter] = OrderedDict()
        """By last use."""
        self._bytes = 0
        self._in_slots: OrderedDict[int, None] = OrderedDict()
        """Generations in the bank, by last use."""
        self._pinned: set[int] = set()
        self._reader = ThreadPoolExecutor(1, "read ahead")
        self._coming: dict[int, Future[Adapter]] = {}

    def add(self, stamp: Stamp, path: str, adapter: Adapter) -> None:
        """Take a generation's adapter, as read from ``path``; it gets a slot when a batch needs it."""
        self._paths[stamp.generation] = path
        self._keep(stamp.generation, adapter)

    def remove(self, generation: int) -> None:
        """Forget a generation in every tier; nothing happens where it has no adapter."""
        self._paths.pop(generation, None)
        self._pinned.discard(generation)
        self._in_slots.pop(generation, None)
        self._bank.drop(generation)
        self._coming.pop(generation, None)
        if (adapter := self._in_memory.pop(generation, None)) is not None:
            self._bytes -= adapter.n_bytes

    def pin(self, stamp: Stamp, pinned: bool) -> Moves:
        """Bring an adapter into a slot that it keeps, or let it go like others. Raises `Refused` for too many."""
        moves = Moves()
        if not pinned:
            self._pinned.discard(stamp.generation)
            return moves
        most = self._bank.slots // 2
        if len(self._pinned - {stamp.generation}) >= most:
            raise Refused(f"pin_adapter: {most} adapters are pinned, half of the physical FM's adapter_slots")
        self._install(stamp, {stamp.generation}, moves)
        self._pinned.add(stamp.generation)
        return moves

    def bring(self, stamps: Iterable[Stamp]) -> tuple[Moves, dict[int, str]]:
        """Bring all of ``stamps`` into slots; what moved, and generation → error for those that cannot come."""
        stamps = list(stamps)
        needed = {stamp.generation for stamp in stamps}
        moves, errors = Moves(), {}
        for stamp in stamps:
            try:
                self._install(stamp, needed, moves)
                self._bank.check(stamp)
            except Exception as error:  # a file that is gone, no memory: its own rows fail, the others run
                if is_device_fault(error):
                    raise
                errors[stamp.generation] = f"vFM {stamp.vfm!r}: its adapter cannot be brought in: {error}"
        return moves, errors

    def _install(self, stamp: Stamp, needed: set[int], moves: Moves) -> None:
        generation = stamp.generation
        if generation in self._in_slots:
            self._in_slots.move_to_end(generation)
            if generation in self._in_memory:
                self._in_memory.move_to_end(generation)
            return
        adapter = self._get(generation)
        if not self._bank.free:
            self._evict(needed, moves)
        self._bank.put(stamp, adapter)
        self._in_slots[generation] = None
        moves.installed.append(generation)

    def _evict(self, needed: set[int], moves: Moves) -> None:
        victim = next((g for g in self._in_slots if g not in needed and g not in self._pinned), None)
        if victim is None:
            raise Refused(f"all {self._bank.slots} slots are needed by the same batch or pinned")
        del self._in_slots[victim]
        self._bank.drop(victim)
        moves.evicted.append(victim)

    # ---- host memory and disk ----

    def _get(self, generation: int) -> Adapter:
        if (adapter := self._in_memory.get(generation)) is not None:
            self._in_memory.move_to_end(generation)
            return adapter
        coming = self._coming.pop(generation, None)
        adapter = coming.result() if coming is not None else self._read(self._paths[generation])
        self._keep(generation, adapter)
        return adapter

    def _keep(self, generation: int, adapter: Adapter) -> None:
        self._in_memory[generation] = adapter
        self._bytes += adapter.n_bytes
        while self._bytes > self._memory and len(self._in_memory) > 1:
            _, dropped = self._in_memory.popitem(last=False)
            self._bytes -= dropped.n_bytes

    def read_ahead(self, generations: Iterable[int]) -> None:
        """Begin to read those of ``generations`` that are neither in a slot nor in memory; take in what was read."""
        for generation in [g for g, coming in self._coming.items() if coming.done()]:
            coming = self._coming.pop(generation)
            if coming.exception() is None:  # else it is read once more when a row needs it, and then told
                self._keep(generation, coming.result())
        for generation in generations:
            path = self._paths.get(generation)
            if path is None or generation in self._in_slots or generation in self._in_memory:
                continue
            if generation not in self._coming:
                self._coming[generation] = self._reader.submit(self._read, path)

    @property
    def room(self) -> int:
        """Slots that a batch's adapters may have."""
        return self._bank.slots - len(self._pinned)

    def close(self) -> None:
        """End the thread; the bank is the owner's."""
        self._reader.shutdown(cancel_futures=True)
