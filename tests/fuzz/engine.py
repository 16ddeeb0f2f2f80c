"""What comes through the channel from an engine that has gone mad: the host hears messages, or that it is dead.

Pickles are only cut off, never changed: they come from a child of ours and may do anything. What is changed is which
packets come, how many, and what their heads say.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_process import EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.messages import BatchDone, DeviceFacts, EngineReady, GroupAnswer
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import HEAD, Channel
from fmplex_tools.bench.faults.mutations import NUMBERS, damage_bytes
from fuzz import parts
from fuzz.artifact import FACTS
from fuzz.told import check_told

_SETTINGS = FMSettings(backbone="small")
_READY = EngineReady(FACTS, DeviceFacts("none", 1, "none"), 1, 0.1)


def _packets(*messages: object, limit: int = 0) -> list[bytes]:
    """As a channel sends them; large ones follow their heads, since no block is allowed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Channel(ours, limit) as channel, theirs:
        for message in messages:
            channel.send(message)
        channel.finish()
        return list(iter(lambda: theirs.recv(1 << 17), b""))


def _answer(rows: int, width: int) -> BatchDone:
    column = np.zeros((1, width), np.float32)
    return BatchDone(1, [GroupAnswer(7, [row], {"vector": column}) for row in range(rows)], 0.1)


def seeds() -> list[bytes]:
    """Good ones: an engine that is ready and answers, small and large."""
    return [_joined(_packets(_READY, _answer(2, 2))), _joined(_packets(_READY, _answer(1, 20_000), _answer(1, 2)))]


def _joined(packets: list[bytes]) -> bytes:
    return parts.join({"p" * (place + 1): packet for place, packet in enumerate(packets)})


def damage(data: bytes, chance: random.Random) -> bytes:
    """A head changed, a packet cut off, taken out, doubled, or in another's place."""
    packets = list(parts.split(data).values())
    place = chance.randrange(len(packets)) if packets else 0
    packet = packets.pop(place) if packets else b""
    change = chance.randrange(5)
    if change == 0:
        packet = damage_bytes(packet[: HEAD.size], chance) + packet[HEAD.size :]
    elif change == 1:
        number, *sizes = (int(abs(chance.choice(NUMBERS))) % 2**64 for _ in range(4))
        packet = HEAD.pack(chance.randrange(4), number % 2**32, *sizes) + packet[HEAD.size :]
    elif change == 2:
        packet = packet[: chance.randint(0, len(packet))]
    elif change == 3:
        packets.insert(chance.randint(0, len(packets)), packet)
    if change != 4:
        packets.insert(chance.randint(0, len(packets)), packet)
    return _joined(packets)


class _Mad(EngineProcess):
    """An engine that has sent these packets and ended."""

    def __init__(self, packets: list[bytes]) -> None:
        super().__init__("none", _SETTINGS, ForkServer(_SETTINGS, print))
        self._packets = packets

    def _launch(self, fd: int, timeout: float) -> Any:
        with socket.socket(fileno=socket.dup(fd)) as end, contextlib.suppress(BlockingIOError):
            for packet in self._packets:
                end.send(packet, socket.MSG_DONTWAIT)  # nobody listens yet: it ended before it sent what has no room
        return _Ended()


class _Ended:
    pid = 0

    def poll(self) -> int:
        return -11

    def wait(self, timeout: float = 0) -> int:
        return -11

    def kill(self) -> None:
        """It has ended."""


def check(data: bytes, folder: Path) -> None:
    """Messages come until the engine is told dead; nothing else is raised, and nothing is waited for."""
    packets = [packet for packet in parts.split(data).values() if packet and _harmless(packet[HEAD.size :])]
    engine = _Mad(packets)
    try:
        assert isinstance(engine.start(1.0), EngineReady)
        for _ in packets:
            engine.receive(0.0)
        engine.receive(0.0)
    except EngineFailure as error:
        check_told(error)
    else:
        raise AssertionError("an engine that has ended is heard of for ever")
    finally:
        engine.close()


def _harmless(payload: bytes) -> bool:
    return any(known[HEAD.size :].startswith(payload) for known in _GOOD)


_GOOD = [packet for seed in seeds() for packet in parts.split(seed).values()]
