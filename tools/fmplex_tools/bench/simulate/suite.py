"""One load under several policies; and the suite: a grid of loads that shows where each policy wins and loses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from fmplex_backend.errors import InvalidInput
from fmplex_backend.scheduling.base import PolicyQueue
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import BatchFairQueue, Tuning
from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_backend.scheduling.policies import PolicyName, make_queue
from fmplex_tools.bench.simulate.device import COSTS, Device
from fmplex_tools.bench.simulate.figures import Figures, figures
from fmplex_tools.bench.simulate.run import simulate
from fmplex_tools.bench.simulate.trace import Lengths, Load, Synthetic

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
LIGHT_LOAD, FLOOD = 0.25, 2.0
"""Of the device's capacity without padding: all light vFMs together, which is what first come first served can still
do with mixed lengths; the flooder."""
WEIGHTS = (1.0, 2.0, 4.0)
"""Of the vFMs where all are backlogged, in turn."""
FEWEST_ROWS, ROWS_EACH = 4_000, 150
"""A run is as long as the device needs for so many rows: in all, and of each vFM where all are backlogged, of which
deficit round robin serves 64 at a time."""


@dataclass(frozen=True)
class Contender:
    """A policy, ``fair`` perhaps with other constants."""

    label: str
    policy: PolicyName
    tuning: Tuning | None = None

    @classmethod
    def parse(cls, spec: str) -> Contender:
        """``drr``, or ``fair:c_cap=8:padding=2``. Raises `InvalidInput`."""
        name, *settings = spec.strip().split(":")
        if name not in POLICIES:
            raise InvalidInput(f"policy {name!r} is none of {', '.join(POLICIES)}")
        if settings and name != "fair":
            raise InvalidInput(f"policy {spec!r}: only fair has constants to set")
        changes: dict[str, Any] = {}
        defaults = Tuning()
        for setting in settings:
            key, _, text = setting.partition("=")
            try:
                changes[key] = type(getattr(defaults, key))(text)
            except (AttributeError, ValueError):
                keys = ", ".join(f"{item.name}={getattr(defaults, item.name):g}" for item in dataclasses.fields(Tuning))
                raise InvalidInput(f"policy {spec!r}: {setting!r} is not a constant of it; it has {keys}") from None
        return cls(spec.strip(), name, dataclasses.replace(defaults, **changes) if changes else None)

    def queue(self, max_batch_rows: int, cost: CostModel) -> PolicyQueue[Any]:
        """An empty queue."""
        if self.tuning is not None:
            return BatchFairQueue(max_batch_rows, cost, tuning=self.tuning)
        return make_queue(self.policy, max_batch_rows, cost)


@dataclass(frozen=True)
class Scenario:
    """A load on a device, named for the table."""

    cost: str
    load: str
    lengths: str
    believed: CostModel
    """What the queue is told."""
    device: Device
    make: Callable[[int], Load]
    """Seed → the load."""
    max_batch_rows: int = 64
    engines: int = 1

    def run(self, contenders: Sequence[Contender], seed: int, progress: Callable[[str, float], None]) -> list[Figures]:
        """Every contender under the same load and the same device's noise."""
        load = self.make(seed)
        found = []
        for contender in contenders:

            def tell(part: float, label: str = contender.label) -> None:
                progress(label, part)

            queue = contender.queue(self.max_batch_rows, self.believed)
            outcome = simulate(queue, load, self.device, seed=seed, engines=self.engines, progress=tell)
            found.append(
                figures(
                    outcome,
                    load.policies,
                    policy=contender.label,
                    cost=self.cost,
                    load=self.load,
                    lengths=self.lengths,
                    closed=load.backlog > 0,
                    engines=self.engines,
                    flooders=load.flooders,
                )
            )
        return found


def saturated(vfms: int, lengths: Lengths, span: float, backlog: int = 65, weights: Sequence[float] = WEIGHTS) -> Load:
    """A closed loop: every vFM has ``backlog`` rows waiting, always: more than a batch, so that no batch empties it."""
    policies = {f"vfm{i}": VfmPolicy(weights[i % len(weights)], max_queue_size=2 * backlog + 4096) for i in range(vfms)}
    return Load(policies, span, backlog=backlog, lengths=lengths)


@dataclass(frozen=True)
class Grid:
    """The suite's loads: every combination of these, each light, flooded and saturated."""

    costs: tuple[str, ...] = tuple(COSTS)
    vfms: tuple[int, ...] = (4, 16, 92, 1000)
    lengths: tuple[str, ...] = ("64", "8-256")
    scale: float = 1.0
    """Of the spans."""
    device: Callable[[CostModel], Device] = field(default=Device)

    def scenarios(self) -> Iterator[Scenario]:
        """In the table's order."""
        for name in self.costs:
            for spec in self.lengths:
                for count in self.vfms:
                    for load in ("light", "flooded", "saturated"):
                        yield self._scenario(name, spec, count, load)

    def _scenario(self, name: str, spec: str, count: int, load: str) -> Scenario:
        cost, lengths = COSTS[name], Lengths.parse(spec)
        capacity = lengths.capacity(cost, 64, count)

        def make(seed: int) -> Load:
            if load == "saturated":
                padded = cost.batch([max(lengths.choices)] * 64, min(count, 64)) / 64
                span = max(FEWEST_ROWS, ROWS_EACH * count) * padded
                return saturated(count, lengths, self.scale * span)
            rate, flood = LIGHT_LOAD * capacity, FLOOD * capacity if load == "flooded" else 0.0
            span = self.scale * FEWEST_ROWS / rate
            return Synthetic(count, rate, flood, span, lengths).load(seed)

        kind = "fixed" if len(lengths.choices) == 1 else "mixed"
        return Scenario(name, load, kind, cost, self.device(cost), make)
