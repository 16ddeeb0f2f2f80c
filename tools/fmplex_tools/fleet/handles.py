"""What a controller sees of the machines, wherever they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fmplex_tools.door.keeper import DoorReport, Lead
from fmplex_tools.fleet.agent import Order
from fmplex_tools.fleet.bind import Node
from fmplex_tools.fleet.device import Report


class AgentHandle(Protocol):
    """A node's agent. Calls raise `Unavailable` where it does not answer."""

    def order(self, claim: int, number: int, orders: dict[str, Order]) -> None:
        """See `fmplex_tools.fleet.agent.Agent`."""

    def reports(self, known: dict[str, int]) -> tuple[int, dict[str, tuple[int, Report | None]]]:
        """Likewise."""

    def down(self, claim: int) -> None:
        """Likewise."""


class DoorHandle(Protocol):
    """The door. Calls raise `Unavailable` where it does not answer."""

    def lead(self, lead: Lead) -> None:
        """See `fmplex_tools.door.keeper.DoorKeeper`."""

    def report(self) -> DoorReport:
        """Likewise."""

    def down(self) -> None:
        """End it."""


class Cluster(Protocol):
    """The machines."""

    def nodes(self) -> list[Node]:
        """Those that are alive."""

    def agent(self, node: Node) -> AgentHandle:
        """The agent of ``node``; started where there is none."""

    def door(self) -> DoorHandle:
        """The door; started where there is none."""

    def need(self, devices: Mapping[str, int]) -> None:
        """Ask for nodes, so that there are so many devices of each kind. Raises `Unavailable`."""

    def release(self, node: Node) -> None:
        """Nothing of the fleet is on ``node`` any more: it may be taken away."""
