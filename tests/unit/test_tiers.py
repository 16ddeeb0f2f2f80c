"""Adapters in slots, in host memory, on disk: what is read ahead, what is kept, what is told when one is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.live import wait_for
from torch import nn

from fmplex_backend.adapters.adapter import Adapter, Place
from fmplex_backend.adapters.bank import AdapterBank, Stamp
from fmplex_backend.engine.tiers import AdapterTiers

WIDTH = 4
ADAPTER = Adapter({Place("layer", "shift"): (torch.ones(WIDTH),)})
STAMPS = {number: Stamp(number, f"v{number}", 1) for number in range(1, 7)}


class Disk:
    """Packed files: their readings are noted, and those of ``gone`` fail."""

    def __init__(self) -> None:
        self.readings: list[str] = []
        self.gone: set[str] = set()

    def __call__(self, path: str) -> Adapter:
        self.readings.append(path)
        if path in self.gone:
            raise FileNotFoundError(path)
        return ADAPTER


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def tiers(disk: Disk) -> Iterator[AdapterTiers]:
    """Six adapters on disk, two slots, memory for two."""
    model = nn.ModuleDict({"layer": nn.Linear(WIDTH, WIDTH)})
    made = AdapterTiers(AdapterBank(model, torch.float32, "cpu", 2), disk, 2 * ADAPTER.n_bytes)
    for number, stamp in STAMPS.items():
        made.add(stamp, f"file {number}", ADAPTER)
    yield made
    made.close()


def test_memory_keeps_what_was_used_last(tiers: AdapterTiers, disk: Disk) -> None:
    assert list(tiers._in_memory) == [5, 6]
    tiers.bring([STAMPS[5]])
    tiers.bring([STAMPS[1]])
    assert list(tiers._in_memory) == [5, 1]
    assert disk.readings == ["file 1"]
    assert tiers._bytes == 2 * ADAPTER.n_bytes


def test_what_is_read_ahead_is_not_read_again(tiers: AdapterTiers, disk: Disk) -> None:
    tiers.read_ahead([1, 6])
    moves, errors = tiers.bring([STAMPS[1]])
    assert (moves.installed, errors) == ([1], {})
    assert disk.readings == ["file 1"]


def test_what_was_read_ahead_for_nobody_is_no_more_than_other_memory(tiers: AdapterTiers) -> None:
    tiers.read_ahead([1, 2, 3, 4])
    wait_for(lambda: all(coming.done() for coming in tiers._coming.values()), "it is read")
    tiers.read_ahead([])
    assert not tiers._coming
    assert len(tiers._in_memory) == 2
    assert tiers._bytes == 2 * ADAPTER.n_bytes


def test_a_file_that_is_gone_is_told_by_the_row_that_needs_it(tiers: AdapterTiers, disk: Disk) -> None:
    disk.gone.add("file 1")
    tiers.read_ahead([1])
    wait_for(lambda: all(coming.done() for coming in tiers._coming.values()), "it is read")
    tiers.read_ahead([])
    moves, errors = tiers.bring([STAMPS[1], STAMPS[6]])
    assert moves.installed == [6]
    assert list(errors) == [1]
    assert "v1" in errors[1]
    disk.gone.clear()
    assert tiers.bring([STAMPS[1]]) == (type(moves)([1], []), {})


def test_an_adapter_that_was_removed_while_it_was_read(tiers: AdapterTiers) -> None:
    tiers.read_ahead([1])
    tiers.remove(1)
    tiers.read_ahead([])
    assert 1 not in tiers._in_memory
    assert 1 not in tiers._paths
