"""What runs on every node of a fleet: its devices, as the controller says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fmplex_backend.errors import Refused
from fmplex_tools.fleet.content import Contents
from fmplex_tools.fleet.device import Device, Report


@dataclass(frozen=True)
class Order:
    """What a device of a node is to hold; None: what it holds, whatever that is."""

    cuda: int | None
    contents: Contents | None


class Agent:
    """Devices by name. Controllers order; one with a lower claim than the highest heard of is refused."""

    def __init__(self, address: str, root: Path, store: str) -> None:
        """``address``: where this node's servers listen; ``root``: folder for its devices' folders."""
        self._address, self._root, self._store = address, root, store
        self._devices: dict[str, Device] = {}
        self._claim = self._number = 0

    def order(self, claim: int, number: int, orders: dict[str, Order]) -> None:
        """``orders``: device → what it is to hold. Devices that are not in it are not this node's any more.

        ``number`` is the order's. Raises `Refused` where a controller with a higher claim has been here.
        """
        if claim < self._claim:
            raise Refused(f"claim {claim} is outdated: a controller with claim {self._claim} has the fleet")
        self._claim = claim
        for name in self._devices.keys() - orders.keys():
            self._devices.pop(name).close(down=True)
        for name, order in orders.items():
            if name not in self._devices:
                self._devices[name] = Device(name, self._address, self._root / name, self._store, order.cuda)
            if order.contents is not None:
                self._devices[name].want(order.contents)
        self._number = number

    def reports(self, known: dict[str, int]) -> tuple[int, dict[str, tuple[int, Report | None]]]:
        """The number of the last order, 0 where there was none; device → number and report, None for a ``known``."""
        made: dict[str, tuple[int, Report | None]] = {}
        for name, device in self._devices.items():
            number, report = device.report()
            made[name] = (number, None if known.get(name) == number else report)
        return self._number, made

    def down(self, claim: int) -> None:
        """End all servers. Raises as `order`."""
        self.order(claim, 0, {})
