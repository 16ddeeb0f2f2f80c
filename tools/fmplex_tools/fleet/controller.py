"""Keeps a fleet what its plan says: decides who holds what, tells agents and the door, and plans anew where it must.

It knows nothing of Ray: the cluster comes in as `Cluster`, agents and the door as what answers like them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Refused
from fmplex_tools.console import err
from fmplex_tools.door.keeper import Lead
from fmplex_tools.door.xds import Server
from fmplex_tools.fleet.agent import Order
from fmplex_tools.fleet.bind import Bound, Node, bind, unused
from fmplex_tools.fleet.claims import Claims, Desired
from fmplex_tools.fleet.content import Contents
from fmplex_tools.fleet.device import Report
from fmplex_tools.fleet.elastic import Elastic, Load, Wish, fitted, scaled
from fmplex_tools.fleet.handles import Cluster, DoorHandle
from fmplex_tools.fleet.leading import Leading
from fmplex_tools.fleet.placing import by_vfm, kind_of, plan_on, sufficient
from fmplex_tools.fleet.reconcile import Next, Seen, reconcile
from fmplex_tools.monitoring.targets import Target
from fmplex_tools.planner.fleet_file import Fleet
from fmplex_tools.planner.placement import PlanFile

STEP = 0.3
"""Seconds between two rounds."""
_ASK_AGAIN = 5.0
"""Seconds after which nodes are asked for once more: Ray itself may have begun anew."""
_TRUE_MEMORY = 0.95
"""Of the memory that the fleet file says, which a device must have at least."""


@dataclass
class _Device:
    """What is known of one device."""

    at: Bound | None = None
    seen: float = 0.0
    """When it was reported last, by `time.monotonic`."""
    report: Report | None = None
    number: int = 0
    """Of the report."""
    told: set[str] = field(default_factory=set)
    """vFMs that it was told to hold."""
    digest: str = ""
    """Of the contents that it was told."""


class Controller:
    """See the module. A thread of its own does the rounds; the rest may be called from others."""

    def __init__(self, cluster: Cluster, claims: Claims, fleet: Fleet, lost_after: float) -> None:
        """Takes the fleet, and goes on with what was saved of it. Raises `Unavailable` and `Refused`."""
        self._cluster, self._claims, self._lost_after = cluster, claims, lost_after
        claims.claim()
        self._desired = claims.read()
        self._fleet = fleet if self._desired is None else Fleet.model_validate_json(self._desired.fleet)
        self._devices: dict[str, _Device] = {}
        self._nodes: list[Node] = []
        self._node_names: dict[str, str] = {}
        """Of those that are lost too."""
        self._leading = Leading()
        self._begun = time.monotonic()
        self._next = Next({}, {}, frozenset())
        self._elastic = Elastic(self._fleet, self._begun)
        self._ordered: dict[str, tuple[int, dict[str, Order]]] = {}
        """Node → number of the last order, and the order."""
        self._acted = 0
        """Number of the `Desired` that all were told about last."""
        self._need: Counter[str] = Counter()
        """Kind → devices that are needed, where Ray's autoscaler is asked for them."""
        self._asked_for = 0.0
        """When it was, by `time.monotonic`."""
        self._planned_on: list[str] | None = None
        """Devices that the plan is for; None: it is not known."""
        self._problems: dict[str, str] = {}
        self._stopped: str | None = None
        """Why it does nothing any more."""
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)
        self._thread.start()

    # ---- from other threads ----

    def apply(self, fleet: Fleet, contents: Contents) -> None:
        """Make the fleet this from now on. Raises `InvalidInput`, `Refused`."""
        with self._lock:
            self._check()
            self._nodes = self._cluster.nodes()
            old = self._desired
            bound = self._bound(fleet, old.bound if old else {})
            new = Desired(
                fleet=fleet.model_dump_json(),
                contents=contents,
                plan=old.plan if old else PlanFile(devices={}),
                drained=old.drained if old else [],
                bound=(old.bound if old else {}) | bound,
                replicas=old.replicas if old else {},
                asleep=old.asleep if old else [],
            )
            self._replan(new, fleet, bound)
            self._fleet, self._elastic = fleet, Elastic(fleet, time.monotonic())

    def drain(self, name: str, undo: bool = False) -> None:
        """Empty a node or device, or let it be filled again. Raises `NotFound`."""
        with self._lock:
            self._check()
            desired = self._must()
            nodes = {node.id for node in self._nodes if name in (node.id, node.name)}
            devices = [device for device, at in desired.bound.items() if device == name or at.node in nodes]
            if not devices:
                known = sorted({*desired.bound, *(node.name for node in self._nodes)})
                raise NotFound(f"no node or device {name!r}; there is {', '.join(known)}")
            drained = sorted(set(desired.drained) - set(devices) if undo else {*desired.drained, *devices})
            new = desired.model_copy(update={"drained": drained})
            self._replan(new, self._fleet, self._bound(self._fleet, desired.bound))

    def status(self) -> dict[str, Any]:
        """All that is known, for people and programs."""
        with self._lock:
            desired, now = self._desired, time.monotonic()
            plan = desired.plan.devices if desired else {}
            names = {node.id: node.name for node in self._nodes}
            devices = {}
            for name in self._names():
                one, report = self._devices.get(name, _Device()), None
                if one.report is not None:
                    report = one.report.model_dump(mode="json")
                devices[name] = {
                    "node": names.get(one.at.node) if one.at is not None else None,
                    "lost_for": None if self._alive(one) else (now - one.seen if one.seen else None),
                    "released": bool(one.at) and self._released([name]),
                    "drained": desired is not None and name in desired.drained,
                    "planned": sorted(vfm for vfms in plan.get(name, {}).values() for vfm in vfms),
                    "holds": sorted(one.told),
                    "report": report,
                }
            return {
                "name": self._fleet.run.name if self._fleet.run else "",
                "claim": self._claims.number,
                "number": desired.number if desired else 0,
                "stopped": self._stopped,
                "problems": dict(self._problems),
                "devices": devices,
                "vfms": {vfm: list(led) for vfm, led in self._next.leads.items()},
                "moving": sorted(self._next.moving),
                "outdated": sorted(self._outdated()),
                "missing": desired.plan.missing if desired else [],
                "awaited": self._awaited(),
                "asleep": desired.asleep if desired else [],
                "sleeping": sorted(self._sleeping()),
                "door": vars(self._leading.report) if self._leading.report else None,
                "settled": self._settled(),
            }

    def down(self) -> None:
        """End every server and the door; what is in the store stays."""
        with self._lock:
            self._stopped = self._stopped or "it was told to end"
        self._stop.set()
        self._thread.join()
        self._cluster.door().down()
        nodes = [node for node in self._cluster.nodes() if node.offers]
        with ThreadPoolExecutor(max(1, len(nodes))) as pool:
            list(pool.map(lambda node: self._cluster.agent(node).down(self._claims.number), nodes))

    # ---- rounds ----

    def _run(self) -> None:
        while not self._stop.wait(STEP):
            try:
                with self._lock:
                    if self._stopped is None:
                        self._check()
                        self._round()
            except Refused as error:
                self._stopped = str(error)
                err.print(f"controller: {error}; it does nothing any more", markup=False)
            except Exception as error:  # the next round may be better; what happened is told
                self._problems["controller"] = f"{type(error).__name__}: {error}"
                err.print(f"controller: {type(error).__name__}: {error}", markup=False)

    def _round(self) -> None:
        self._nodes = self._cluster.nodes()
        self._problems = unused(self._counts(self._fleet), self._nodes)
        if self._desired is None:
            return
        bound = self._bound(self._fleet, self._desired.bound)
        if bound != self._desired.bound:
            # A place that is lost is remembered: its node may come back, or another take it.
            self._save(self._desired.model_copy(update={"bound": self._desired.bound | bound}))
        self._hear(bound)
        self._plan_anew(bound)
        self._follow_load(bound)
        self._act(bound)
        self._scale(bound)

    def _hear(self, bound: Mapping[str, Bound]) -> None:
        """What the agents report."""
        now = time.monotonic()
        for name, at in bound.items():
            if name not in self._devices or self._devices[name].at != at:
                self._devices[name] = _Device(at=at)
        for node, own in self._on_nodes(bound):
            if self._released(own):
                continue
            try:
                number, heard = self._cluster.agent(node).reports({name: self._devices[name].number for name in own})
            except FMplexError as error:
                self._problems[node.name] = str(error)
                continue
            if number != self._ordered.get(node.id, (0, {}))[0]:  # another life of it
                self._ordered.pop(node.id, None)
            for name in own:
                self._devices[name].seen = now
                if name in heard:
                    self._devices[name].number, report = heard[name]
                    self._devices[name].report = report or self._devices[name].report

    def _plan_anew(self, bound: Mapping[str, Bound]) -> None:
        """Where devices have come, or are lost for long."""
        desired = self._must()
        if self._usable(self._fleet, bound, desired) != self._planned_on:
            self._replan(desired, self._fleet, bound)

    def _follow_load(self, bound: Mapping[str, Bound]) -> None:
        """Where more or fewer replicas are needed than there are, or FMs fall asleep or wake."""
        if self._elastic.idle:
            return
        desired, loads = self._must(), dict[str, Load]()
        for one in self._devices.values():
            if one.report is not None and self._alive(one):
                for vfm, load in one.report.loads.items():
                    loads[vfm] = load + loads[vfm] if vfm in loads else load
        waiting = self._leading.report.waiting if self._leading.report is not None else ()
        wish = self._elastic.step(_wish(desired), loads, waiting, time.monotonic(), self._next.moving)
        if wish != _wish(desired):
            new = desired.model_copy(update={"replicas": dict(wish.replicas), "asleep": sorted(wish.asleep)})
            self._replan(new, self._fleet, bound)
        planned = by_vfm(self._must().plan)
        for vfm, count in wish.replicas.items():
            if (room := len(planned.get(vfm, ()))) < count:
                self._problems[vfm] = f"what comes in asks for {count} replicas; there is room for {room}"

    def _replan(self, desired: Desired, fleet: Fleet, bound: Mapping[str, Bound]) -> None:
        """Save ``desired`` with a plan that changes as little as can be. Raises `InvalidInput`."""
        usable = self._usable(fleet, bound, desired)
        self._planned_on, wish = usable, _wish(desired)
        if _scales(fleet):
            every = self._all(fleet)
            self._need = Counter(map(kind_of, _enough(fleet, wish, every, desired.plan)))
            usable = _enough(fleet, wish, usable, desired.plan)
        made, _ = fitted(fleet, wish, lambda one: plan_on(one, usable, desired.plan))
        if desired != self._desired or made != desired.plan:
            self._save(desired.model_copy(update={"plan": made}))

    def _act(self, bound: Mapping[str, Bound]) -> None:
        """Tell the door and the agents what is to be."""
        desired, now = self._must(), time.monotonic()
        planned = by_vfm(desired.plan)
        # A device whose node is lost may serve all the same: the door, which asks it for its health, leads there until
        # what was on it serves elsewhere.
        up = {name: one.report for name, one in self._devices.items() if one.report is not None and one.report.up}
        seen = Seen(
            alive=up.keys(),
            present={
                name: one.told | (one.report.held if one.report is not None else set())
                for name, one in self._devices.items()
            },
            serving={name: report.serving for name, report in up.items()},
        )
        self._ask_door(lambda door: self._leading.follow(door, now))
        made = reconcile(
            planned, seen, lambda vfm, device: self._leading.unled(vfm, device, now), bundles=self._fleet.bundles
        )
        # What sleeps is led to nowhere, so that the door says who waits for it.
        self._next = replace(made, leads=made.leads | dict.fromkeys(self._sleeping(), ()))
        self._lead_to(up)
        replicas = {vfm: len(devices) for vfm, devices in planned.items()}
        for node, own in self._on_nodes(bound):
            if all(now - self._devices[name].seen < STEP * 10 for name in own):
                self._order(node, own, replicas)
        self._acted = desired.number

    def _scale(self, bound: Mapping[str, Bound]) -> None:
        """Ask for the nodes that are needed, and let those go on which nothing is any more."""
        if not _scales(self._fleet):
            if self._need:  # it did until its file was edited
                self._cluster.need({})
                self._need.clear()
            return
        now = time.monotonic()
        if now - self._asked_for > _ASK_AGAIN:
            self._cluster.need(self._need)
            self._asked_for = now
        for node, own in self._on_nodes(bound):
            if self._released(own):
                self._cluster.release(node)

    def _awaited(self) -> dict[str, int]:
        """Kind → devices that were asked for and are on no node yet."""
        there = Counter(kind_of(name) for name, one in self._devices.items() if one.at is not None)
        return dict(self._need - there)

    def _released(self, devices: Collection[str]) -> bool:
        """Whether a node's devices are not needed: nothing is planned for them, nothing is on them."""
        if not _scales(self._fleet) or self._desired is None:
            return False
        return all(
            not self._desired.plan.devices.get(name)
            and (report := self._devices.get(name, _Device()).report) is not None
            and not (report.held or report.pid)
            for name in devices
        )

    def _order(self, node: Node, devices: list[str], replicas: Mapping[str, int]) -> None:
        """Only what differs from the last order is sent; a device that has not reported yet is not told anything."""
        orders = {}
        for name in devices:
            one, contents = self._devices[name], None
            cuda = one.at.place if one.at is not None and self._fleet.devices[kind_of(name)].cuda else None
            if one.report is not None:
                one.told = set(self._next.holds.get(name, ()))
                contents = self._must().contents.part(one.told, replicas, cuda)
                one.digest = contents.digest
            orders[name] = Order(cuda, contents)
        number, before = self._ordered.get(node.id, (0, {}))
        if orders == before:
            return
        number += 1
        try:
            self._cluster.agent(node).order(self._claims.number, number, orders)
        except Refused:
            raise
        except FMplexError as error:
            self._problems[node.name] = str(error)
        else:
            self._ordered[node.id] = number, orders

    def _lead_to(self, up: Mapping[str, Report]) -> None:
        servers = tuple(
            Server(name, report.host, report.ports.http, report.ports.grpc, report.ports.health)
            for name, report in sorted(up.items())
        )
        on = self._next.leads | self._fms_on(up)
        contents = self._must().contents
        index = {name: contents.vfms[name].version if name in contents.vfms else "1" for name in on if on[name]}
        fleet = self._fleet.run.name if self._fleet.run else ""
        wanted = Lead(0, servers, on, index, fleet, self._targets())
        self._ask_door(lambda door: self._leading.tell(door, wanted))

    def _targets(self) -> tuple[Target, ...]:
        """Whose metrics are to be read: all servers that should run, so that one that does not is noticed."""
        self._node_names |= {node.id: node.name for node in self._nodes}
        drained = self._must().drained
        found = []
        for name in self._names():
            one = self._devices.get(name, _Device())
            if one.at is None or one.report is None or not (one.told or one.report.up):
                continue
            if name not in drained or self._alive(one):  # a node that was drained may be gone for good
                report = one.report
                node = self._node_names.get(one.at.node, report.host)
                found.append(Target(name, node, f"{report.host}:{report.ports.metrics}"))
        return tuple(found)

    def _ask_door(self, ask: Callable[[DoorHandle], str]) -> None:
        try:
            problem = ask(self._cluster.door())
        except FMplexError as error:
            problem = str(error)
        if problem:
            self._problems["door"] = problem

    def _fms_on(self, up: Mapping[str, Report]) -> dict[str, tuple[str, ...]]:
        """Physical FM → devices that have it: clients such as perf_analyzer ask for its configuration."""
        found: dict[str, list[str]] = {}
        vfms = self._must().contents.vfms
        for name, report in sorted(up.items()):
            for fm in sorted({vfms[vfm].fm for vfm in report.serving if vfm in vfms}):
                found.setdefault(fm, []).append(name)
        return {fm: tuple(devices) for fm, devices in found.items()}

    # ---- what it knows ----

    def _check(self) -> None:
        if self._stopped is not None:
            raise Refused(self._stopped)
        self._claims.check()

    def _must(self) -> Desired:
        if self._desired is None:
            raise InvalidInput("nothing was applied to this fleet yet; `fmplex fleet apply FLEET.yaml`")
        return self._desired

    def _on_nodes(self, bound: Mapping[str, Bound]) -> Iterator[tuple[Node, list[str]]]:
        """Nodes that have devices of the fleet, and which."""
        for node in self._nodes:
            if own := [name for name, at in bound.items() if at.node == node.id]:
                yield node, own

    def _sleeping(self) -> set[str]:
        """vFMs and bundles whose physical FM sleeps."""
        asleep = self._desired.asleep if self._desired is not None else []
        return {name for name, fm in self._fleet.fm_of().items() if fm in asleep} if asleep else set()

    def _all(self, fleet: Fleet) -> list[str]:
        return [f"{kind}-{number}" for kind, count in self._counts(fleet).items() for number in range(count)]

    def _save(self, desired: Desired) -> None:
        number = (self._desired.number if self._desired else 0) + 1
        desired = desired.model_copy(update={"number": number})
        self._claims.save(desired)
        self._desired = desired

    def _names(self) -> list[str]:
        return self._all(self._fleet)

    def _alive(self, one: _Device) -> bool:
        return one.seen > 0 and time.monotonic() - one.seen < self._lost_after

    def _bound(self, fleet: Fleet, before: Mapping[str, Bound]) -> dict[str, Bound]:
        return bind(self._counts(fleet), self._nodes, before)

    @staticmethod
    def _counts(fleet: Fleet) -> dict[str, int]:
        return {kind: spec.count for kind, spec in fleet.devices.items()}

    def _usable(self, fleet: Fleet, bound: Mapping[str, Bound], desired: Desired) -> list[str]:
        """Devices that have a node, or lost it a short while ago, with the memory that they should have."""
        found, now = [], time.monotonic()
        for kind, spec in fleet.devices.items():
            for name in (f"{kind}-{number}" for number in range(spec.count)):
                one = self._devices.get(name, _Device())
                lost = name not in bound and (
                    name not in desired.bound or now - (one.seen or self._begun) > self._lost_after
                )
                if lost or name in desired.drained:
                    continue
                if one.report is not None and one.report.memory < _TRUE_MEMORY * spec.memory:
                    has, said = one.report.memory / 1e9, spec.memory / 1e9
                    self._problems[name] = f"has {has:.1f} GB, the fleet file says {said:.1f}: it is not used"
                    continue
                found.append(name)
        return found

    def _settled(self) -> bool:
        """Whether all is as it is to be."""
        desired = self._desired
        if desired is None or self._acted != desired.number or self._outdated() or not self._leading.followed:
            return False
        planned, missing = by_vfm(desired.plan), set(desired.plan.missing)
        if not self._next.moving <= missing or self._next.leads.keys() != planned.keys() | self._sleeping():
            return False
        on = {name: {vfm for vfms in fms.values() for vfm in vfms} for name, fms in desired.plan.devices.items()}
        return all(
            one.report is not None
            and one.report.told == one.digest
            and one.report.held - missing == on.get(name, set())
            for name, one in self._devices.items()
            if self._alive(one)
        )

    def _outdated(self) -> set[str]:
        """vFMs of which a device that they are planned for serves no or another version."""
        if self._desired is None:
            return set()
        found = set()
        for vfm, devices in by_vfm(self._desired.plan).items():
            for device in devices:
                one = self._devices.get(device)
                if one is None or one.report is None or vfm not in one.report.current:
                    found.add(vfm)
        return found


def _scales(fleet: Fleet) -> bool:
    """Whether nodes are asked for as they are needed."""
    return fleet.run is not None and fleet.run.autoscale


def _enough(fleet: Fleet, wish: Wish, devices: list[str], before: PlanFile) -> list[str]:
    """As few of ``devices`` as hold as much of ``wish`` as all of them would."""
    _, held = fitted(fleet, wish, lambda one: plan_on(one, devices, None))
    return sufficient(scaled(fleet, held), devices, before)


def _wish(desired: Desired) -> Wish:
    return Wish(desired.replicas, frozenset(desired.asleep))
