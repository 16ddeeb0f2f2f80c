"""A fleet's machines as its controller sees them, without any: what they are told they are at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fmplex_tools.door.keeper import DoorReport, Lead
from fmplex_tools.fleet.agent import Order
from fmplex_tools.fleet.bind import Node
from fmplex_tools.fleet.device import Ports, Report
from fmplex_tools.fleet.elastic import Load


class Machines:
    """Nodes with a device of kind ``cpu`` each; what is public may be changed meanwhile."""

    def __init__(self, nodes: int = 2, most: int = 2) -> None:
        """``most``: nodes that an autoscaler may start."""
        self.there = [self._new(number) for number in range(1, nodes + 1)]
        self.up = True
        self.led = Lead(0)
        self.loads: dict[str, Load] = {}
        """What each replica of a vFM reports."""
        self.waiting: tuple[str, ...] = ()
        """vFMs that somebody waits for at the door."""
        self.needed: Mapping[str, int] = {}
        """What the autoscaler was asked for last."""
        self.released: set[str] = set()
        """Nodes whose agents were ended."""
        self._most = most
        self._held: dict[str, frozenset[str]] = {}
        self._told: dict[str, str] = {}
        self._orders: dict[str, tuple[int, list[str]]] = {}
        self._node = ""

    @staticmethod
    def _new(number: int) -> Node:
        return Node(f"node-{number}", f"node-{number}", f"10.0.0.{number}", {"cpu": 1})

    def nodes(self) -> list[Node]:
        """As `Cluster`; likewise the others."""
        return list(self.there)

    def agent(self, node: Node) -> Machines:
        self._node, self._address = node.id, node.address
        self.released.discard(node.id)
        return self

    def order(self, claim: int, number: int, orders: dict[str, Order]) -> None:
        self._orders[self._node] = number, list(orders)
        told = {name: order.contents for name, order in orders.items() if order.contents is not None}
        self._held |= {name: frozenset(contents.vfms) for name, contents in told.items()}
        self._told |= {name: contents.digest for name, contents in told.items()}

    def reports(self, known: dict[str, int]) -> tuple[int, dict[str, tuple[int, Report | None]]]:
        number, devices = self._orders.get(self._node, (0, []))
        made = {}
        for name in devices:
            held = self._held.get(name, frozenset())
            told = Report(
                host=self._address,
                ports=Ports(http=8000, grpc=8001, metrics=8002, health=8003),
                memory=10**12,
                up=self.up and bool(held),
                pid=1 if held else 0,
                told=self._told.get(name, ""),
                held=held,
                serving=held,
                current=held,
                loads={vfm: load for vfm, load in self.loads.items() if vfm in held},
            )
            made[name] = known[name] + 1, told
        return number, made

    def door(self) -> Machines:
        return self

    def lead(self, lead: Lead) -> None:
        self.led = lead

    def report(self) -> DoorReport:
        return DoorReport("here", self.led.number, True, "", self.waiting)

    def down(self, claim: int = 0) -> None:
        self._held.clear()

    def need(self, devices: Mapping[str, int]) -> None:
        """Nodes come as they are asked for, and go when they are not and nobody keeps them."""
        self.needed = Counter(devices)
        wanted = min(self._most, devices.get("cpu", 0))
        while len(self.there) < wanted:
            self.there.append(self._new(len(self.there) + 1))
        while len(self.there) > wanted and self.there[-1].id in self.released:
            self.there.pop()

    def release(self, node: Node) -> None:
        self.released.add(node.id)
