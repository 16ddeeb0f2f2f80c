"""Blocks of shared memory that one process fills and another reads, and when each may be filled again.

A block's first byte says who may write into it: its *maker*, while it is free, or else the *holder*, the other process.
The maker takes a free block, fills it and sends its number; the holder lends it out as arrays, and it is free again
when the last of them has been collected as garbage. Its memory is there as long as either process has it, the arrays
included; it has no name that could outlive them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np

ALIGNED = 64
"""What a block holds starts at a multiple of so many bytes; its own first line is the byte that says whose it is."""

_LEAST = 1 << 20
_FREE, _TAKEN, _DROPPED = range(3)
"""The maker changes free to taken and free to dropped, the holder taken to free."""


@dataclass(frozen=True)
class Taken:
    """A block that its maker may fill, and then names to the holder."""

    number: int
    memory: mmap.mmap
    fd: int | None
    """If the block is new: what the holder needs to hold it. Whoever took the block closes it."""


class MadeBlocks:
    """The blocks that this process makes. Used by one thread at a time."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes that all of them may take together."""
        self._limit = limit
        self._next = 0
        self._blocks: dict[int, mmap.mmap] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks, free or not."""
        return sum(map(len, self._blocks.values()))

    def take(self, size: int) -> Taken | None:
        """The smallest free block for ``size`` bytes or a new one, in the place of free ones that are too small.

        None where the limit, the memory or the number of open files allows no more.
        """
        size += ALIGNED
        free = sorted((len(memory), number) for number, memory in self._blocks.items() if memory[0] == _FREE)
        for length, number in free:
            if length >= size:
                self._blocks[number][0] = _TAKEN
                return Taken(number, self._blocks[number], None)
        # Powers of two, so that a load of many sizes ends up with few blocks; pages never touched cost no memory.
        new = max(_LEAST, 1 << (size - 1).bit_length())
        excess = self.n_bytes + new - self._limit
        if excess > sum(length for length, _ in free):
            return None
        while excess > 0:
            length, number = free.pop()
            self._blocks.pop(number)[0] = _DROPPED  # the holder sees it when it gets the new one
            excess -= length
        with contextlib.suppress(OSError):
            return self._make(new)
        return None

    def _make(self, length: int) -> Taken:
        fd = os.memfd_create("fmplex")
        try:
            os.ftruncate(fd, length)
            memory = mmap.mmap(fd, length)
        except OSError:
            os.close(fd)
            raise
        memory[0] = _TAKEN
        number, self._next = self._next, self._next + 1
        self._blocks[number] = memory
        return Taken(number, memory, fd)

    def forget(self) -> None:
        """Let go of all; the holder keeps what it has lent out."""
        self._blocks.clear()


class HeldBlocks:
    """The blocks that the other process made. Used by one thread; what it lends, by any."""

    def __init__(self) -> None:
        self._blocks: dict[int, mmap.mmap] = {}

    def add(self, number: int, length: int, fd: int) -> None:
        """Hold a new block; closes ``fd``."""
        try:
            memory = mmap.mmap(fd, length)
        finally:
            os.close(fd)
        self._blocks = {n: known for n, known in self._blocks.items() if known[0] != _DROPPED} | {number: memory}

    def lend(self, number: int, size: int) -> memoryview:
        """The first ``size`` bytes in a block, which goes back to its maker when nothing refers to them any more."""
        memory = self._blocks[number]
        lent = np.frombuffer(memory, np.uint8, size, ALIGNED)
        weakref.finalize(lent, _give_back, memory).atexit = False
        return lent.data

    def forget(self) -> None:
        """Let go of all; what is lent stays valid."""
        self._blocks.clear()


def _give_back(memory: mmap.mmap) -> None:
    memory[0] = _FREE  # one byte: no lock is needed, so this may run in any thread, in the middle of anything
