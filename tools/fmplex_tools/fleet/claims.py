"""Who may change a fleet, and what it is to be: kept in the store, so that it outlives every process and Ray itself.

A controller claims the next number by making a file that nobody else can make, and has the fleet until a higher number
is claimed. Agents refuse what a controller with a lower number than they have heard of says.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from fmplex_backend.errors import Refused, Unavailable
from fmplex_tools.fleet.artifacts import opened
from fmplex_tools.fleet.bind import Bound
from fmplex_tools.fleet.content import Contents
from fmplex_tools.planner.placement import PlanFile


class Desired(BaseModel):
    """What a fleet is to be, and what is decided about it so far."""

    model_config = ConfigDict(extra="forbid")

    number: int = 0
    """Goes up whenever it is changed."""
    fleet: str
    """The fleet file, as JSON."""
    contents: Contents
    plan: PlanFile
    drained: list[str] = []
    """Devices that are to be left empty."""
    bound: dict[str, Bound] = {}
    """Device → where it was last."""
    replicas: dict[str, int] = {}
    """vFM → replicas that its load asks for, where they are more than its least."""
    asleep: list[str] = []
    """Physical FMs that nobody calls."""


class Claims:
    """The fleet ``name`` in ``store``, a folder or URL."""

    def __init__(self, store: str, name: str) -> None:
        self._store = store
        self._files, base = opened(store)
        self._base = f"{base}/fleets/{name}"
        self.number = 0
        """Of this controller."""

    def claim(self) -> None:
        """Take the fleet. Raises `Unavailable` where the store cannot be written."""
        try:
            self._files.makedirs(f"{self._base}/claims", exist_ok=True)
            number = max(self._claimed(), default=0)
            while True:
                number += 1
                try:
                    self._files.pipe_file(f"{self._base}/claims/{number:09}", b"", mode="create")
                except FileExistsError:
                    continue
                self.number = number
                return
        except OSError as error:
            raise Unavailable(f"store {self._store}: cannot be written: {error}") from None

    def check(self) -> None:
        """Raise `Refused` where another controller has taken the fleet since."""
        try:
            newest = max(self._claimed(), default=0)
        except OSError as error:
            raise Unavailable(f"store {self._store}: cannot be read: {error}") from None
        if newest > self.number:
            raise Refused(f"another controller has taken the fleet (claim {newest}, this one's is {self.number})")

    def read(self) -> Desired | None:
        """What was saved last. Raises `Refused` where it is nothing that was saved, `Unavailable`."""
        path = f"{self._base}/desired.json"
        try:
            self._files.invalidate_cache(self._base)
            text = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"store {self._store}: cannot be read: {error}") from None
        try:
            return Desired.model_validate_json(text)
        except ValidationError as error:
            raise Refused(f"{path}: is not what a controller saves: {error.errors()[0]['msg']}") from None

    def save(self, desired: Desired) -> None:
        """Keep it, if the fleet is still this controller's: whole, or what was there stays."""
        self.check()
        path, partial = f"{self._base}/desired.json", f"{self._base}/desired-{self.number}.partial"
        try:
            self._files.pipe_file(partial, desired.model_dump_json().encode())
            self._files.mv(partial, path)
        except OSError as error:
            raise Unavailable(f"store {self._store}: cannot be written: {error}") from None

    def _claimed(self) -> list[int]:
        self._files.invalidate_cache(f"{self._base}/claims")
        return [int(path.rpartition("/")[2]) for path in self._files.ls(f"{self._base}/claims", detail=False)]
