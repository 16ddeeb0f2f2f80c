"""Where the door is told to lead, where it may still lead, and since when it does not: nothing may leave before."""

from __future__ import annotations

import time
from dataclasses import replace

from fmplex_backend.errors import FMplexError
from fmplex_tools.door.keeper import DoorReport, Lead
from fmplex_tools.fleet.handles import DoorHandle


class Leading:
    """Of one controller. Times are by `time.monotonic`."""

    def __init__(self) -> None:
        self.report: DoorReport | None = None
        """The door's last."""
        self._lead = Lead(0)
        self._led_before: dict[str, set[str]] = {}
        """Where the door may lead still, while it does not say that it follows the last `Lead`."""
        self._last_led: dict[tuple[str, str], float] = {}
        """(vFM, device) → when the door led there last."""
        self._follows_since: float | None = None
        """When the door began to follow this controller."""

    @property
    def followed(self) -> bool:
        """Whether the door is up and leads where it was told last."""
        return self.report is not None and self.report.up and self.report.led == self._lead.number

    def follow(self, door: DoorHandle, now: float) -> str:
        """Ask the door what it does, and note where it leads; what is wrong, empty where nothing is."""
        follows, problem = False, ""
        try:
            self.report = report = door.report()
            follows = report.led == self._lead.number != 0
            problem = report.problem
        except FMplexError as error:
            problem = str(error)
        if follows:
            self._led_before = {}
            self._follows_since = self._follows_since or now
        for on in (self._lead.on, self._led_before):
            for vfm, devices in on.items():
                for device in devices:
                    self._last_led[vfm, device] = now
        return problem

    def unled(self, vfm: str, device: str, now: float) -> float:
        """Seconds since the door led ``vfm`` to ``device``, as far as this controller can know."""
        if self._follows_since is None:
            return 0.0
        return now - max(self._follows_since, self._last_led.get((vfm, device), 0.0))

    def tell(self, door: DoorHandle, wanted: Lead) -> str:
        """Have the door lead there, by a number that is given here; what is wrong, empty where nothing is."""
        if replace(wanted, number=self._lead.number) != self._lead:
            for vfm, devices in self._lead.on.items():
                self._led_before.setdefault(vfm, set()).update(devices)
            # By the clock, for being another than any that an earlier controller gave.
            self._lead = replace(wanted, number=time.time_ns())
        elif self.report is not None and self.report.led == self._lead.number:
            return ""
        try:
            door.lead(self._lead)
        except FMplexError as error:
            return str(error)
        return ""
