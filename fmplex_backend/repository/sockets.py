"""Ports and sockets: how an ensemble says which vFM it means.

A physical FM declares, for each port *i*, one output per socket: ``port{i}.vector``, ``port{i}.scores`` and so on. The
name of the output that a request asks for is the only constant that a Triton ensemble can hand to a step, so it
carries the vFM's number (``docs/architecture.md``, "Ports").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType


@dataclass(frozen=True)
class Socket:
    """One typed output of every port. ``rank`` counts the dimensions after the batch dimension."""

    name: str
    data_type: str
    rank: int
    meaning: str

    @property
    def dims(self) -> list[int]:
        """Triton ``dims`` of the declared output."""
        return [1] if self.name == "info" else [-1] * self.rank


SOCKETS: dict[str, Socket] = {
    socket.name: socket
    for socket in (
        Socket("vector", "TYPE_FP32", 1, "one vector a row: logits, values or an embedding"),
        Socket("scores", "TYPE_FP32", 1, "probabilities: per label, or per token that of its label"),
        Socket(
            "matrix", "TYPE_FP32", 2, "one matrix a row: logits or vectors per token, or a number per channel and step"
        ),
        Socket("volume", "TYPE_FP32", 3, "one volume a row"),
        Socket("text", "TYPE_STRING", 1, "labels by name"),
        Socket("info", "TYPE_STRING", 1, "the answer's provenance, a JSON object"),
    )
}

STATUS_OUTPUT = "status"
"""Output of the physical FM that tells, as JSON, what is served and what was refused and why."""

_NAME = re.compile(r"port(0|[1-9][0-9]{0,8})\.([a-z]+)")


def output_name(port: int, socket: str) -> str:
    """The physical FM's output for one socket of one port, e.g. ``port17.vector``."""
    return f"port{port}.{socket}"


def parse_output_name(name: str) -> tuple[int, str] | None:
    """``(port, socket)`` of an output's name, or None where it is not the name of a socket."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in SOCKETS:
        return None
    return int(match[1]), match[2]


def wanted_sockets(outputs: frozenset[str]) -> Mapping[int, frozenset[str]]:
    """Port → sockets of it among ``outputs``, in the order of ports; names that are no socket's are left out."""
    return _remembered(outputs) if len(outputs) <= _MOST_REMEMBERED else _wanted(outputs)


def _wanted(outputs: frozenset[str]) -> Mapping[int, frozenset[str]]:
    wanted: dict[int, set[str]] = {}
    for name in outputs:
        if (parsed := parse_output_name(name)) is not None:
            wanted.setdefault(parsed[0], set()).add(parsed[1])
    return MappingProxyType({port: frozenset(sockets) for port, sockets in sorted(wanted.items())})


_MOST_REMEMBERED = 64
_remembered = lru_cache(maxsize=1024)(_wanted)
"""Every request asks, and those of an ensemble always for the same; 5 MB where strangers ask for everything else."""
