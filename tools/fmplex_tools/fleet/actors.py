"""The fleet's actors: the only place that knows Ray.

The controller, the door and an agent on every node are detached, so that they outlive who starts them, and are started
again by Ray when their processes die.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmplex_backend.errors import FMplexError, NotFound, Unavailable
from fmplex_tools.door.keeper import DoorKeeper, DoorReport, Lead
from fmplex_tools.door.xds import Door
from fmplex_tools.fleet.agent import Agent, Order
from fmplex_tools.fleet.bind import RESOURCE, Node, offers_of
from fmplex_tools.fleet.claims import Claims
from fmplex_tools.fleet.content import Contents
from fmplex_tools.fleet.controller import Controller
from fmplex_tools.fleet.device import Report
from fmplex_tools.fleet.folders import door_folder, fleet_folder
from fmplex_tools.planner.fleet_file import Fleet, RunSpec

NAMESPACE = "fmplex"
SOON = 10.0
"""Seconds for what an agent or the door does at once."""
LONG = 120.0
"""Seconds for what takes a plan, or draining servers."""
RESTART = 60.0
"""Seconds for Ray to start a controller that has died."""
_HEAD = "node:__internal_head__"
"""Ray's resource of the head node."""
_FOR_EVER: dict[str, Any] = {"lifetime": "detached", "max_restarts": -1, "namespace": NAMESPACE, "num_cpus": 0}
_T = TypeVar("_T")


# ---- in the actors' processes ----


class _AgentActor:
    def __init__(self, address: str, fleet: str, store: str) -> None:
        self._agent = Agent(address, fleet_folder(fleet), store)

    def order(self, claim: int, number: int, orders: dict[str, Order]) -> None:
        self._agent.order(claim, number, orders)

    def reports(self, known: dict[str, int]) -> tuple[int, dict[str, tuple[int, Report | None]]]:
        return self._agent.reports(known)

    def down(self, claim: int) -> None:
        self._agent.down(claim)


class _DoorActor:
    def __init__(self, door: Door, fleet: str, longest_wait: float) -> None:
        self._keeper = DoorKeeper(door, door_folder(fleet), longest_wait)

    def lead(self, lead: Lead) -> None:
        self._keeper.lead(lead)

    def report(self) -> DoorReport:
        return self._keeper.report()

    def down(self) -> None:
        self._keeper.close(down=True)


class _ControllerActor:
    def __init__(self, fleet: str) -> None:
        """``fleet``: the fleet file, as JSON."""
        self._fleet = Fleet.model_validate_json(fleet)
        run = run_of(self._fleet)
        claims = Claims(run.store, run.name)
        self._controller = Controller(_RayCluster(run), claims, self._fleet, run.lost_after)

    def apply(self, fleet: str, contents: Contents) -> None:
        self._controller.apply(Fleet.model_validate_json(fleet), contents)

    def drain(self, name: str, undo: bool) -> None:
        self._controller.drain(name, undo)

    def status(self) -> dict[str, Any]:
        return self._controller.status()

    def down(self) -> None:
        self._controller.down()


# ---- what the controller sees ----


class _RayCluster:
    """The nodes that Ray knows, and the actors on them."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run

    def nodes(self) -> list[Node]:
        found = []
        for node in ray.nodes():
            if node["Alive"]:
                address = node["NodeManagerAddress"]
                name = node.get("NodeName") or address
                found.append(Node(node["NodeID"], name, address, offers_of(node["Resources"])))
        return sorted(found, key=lambda node: (node.name, node.id))

    def agent(self, node: Node) -> _AgentHandle:
        # What holds a bit of a node's devices keeps Ray's autoscaler from taking the node away.
        held = {f"{RESOURCE}{kind}": 0.001 for kind in node.offers} if self._run.autoscale else {}
        actor = ray.remote(_AgentActor).options(
            name=self._agent_name(node),
            get_if_exists=True,
            resources=held,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            max_concurrency=4,
            **_FOR_EVER,
        )
        made = _asked(f"agent on {node.name}", lambda: actor.remote(node.address, self._run.name, self._run.store))
        return _AgentHandle(node.name, made)

    def need(self, devices: Mapping[str, int]) -> None:
        bundles = [{f"{RESOURCE}{kind}": 1} for kind, count in devices.items() for _ in range(count)]
        _asked("autoscaler", lambda: request_resources(bundles=bundles))

    def release(self, node: Node) -> None:
        with contextlib.suppress(ValueError):  # there is none any more
            ray.kill(ray.get_actor(self._agent_name(node), namespace=NAMESPACE))

    def _agent_name(self, node: Node) -> str:
        return f"{self._run.name}/agent/{node.id}"

    def door(self) -> _DoorHandle:
        spec = self._run.door
        door = Door(spec.host, spec.port, spec.admin, spec.tls_cert, spec.tls_key)
        actor = ray.remote(_DoorActor).options(
            name=f"{self._run.name}/door",
            get_if_exists=True,
            resources={_HEAD: 0.001},  # clients know its address
            max_concurrency=4,
            **_FOR_EVER,
        )
        return _DoorHandle(_asked("door", lambda: actor.remote(door, self._run.name, self._run.first_wait)))


class _AgentHandle:
    def __init__(self, node: str, actor: Any) -> None:
        self._who, self._actor = f"agent on {node}", actor

    def order(self, claim: int, number: int, orders: dict[str, Order]) -> None:
        _asked(self._who, lambda: ray.get(self._actor.order.remote(claim, number, orders), timeout=SOON))

    def reports(self, known: dict[str, int]) -> tuple[int, dict[str, tuple[int, Report | None]]]:
        return cast(
            "tuple[int, dict[str, tuple[int, Report | None]]]",
            _asked(self._who, lambda: ray.get(self._actor.reports.remote(known), timeout=SOON)),
        )

    def down(self, claim: int) -> None:
        _asked(self._who, lambda: ray.get(self._actor.down.remote(claim), timeout=LONG))
        ray.kill(self._actor)


class _DoorHandle:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def lead(self, lead: Lead) -> None:
        _asked("door", lambda: ray.get(self._actor.lead.remote(lead), timeout=SOON))

    def report(self) -> DoorReport:
        return cast("DoorReport", _asked("door", lambda: ray.get(self._actor.report.remote(), timeout=SOON)))

    def down(self) -> None:
        _asked("door", lambda: ray.get(self._actor.down.remote(), timeout=LONG))
        ray.kill(self._actor)


class _Restarting(Unavailable):
    """Its process has died."""


def _asked(who: str, ask: Callable[[], _T]) -> _T:
    """What came of it; errors as ours. Raises `FMplexError`."""
    try:
        return ask()
    except RayTaskError as error:
        if isinstance(error.cause, FMplexError):
            raise error.cause from None
        raise Unavailable(f"{who}: {error.cause or error}") from None
    except RayActorError as error:
        raise _Restarting(f"{who} has died; Ray starts it again: {error}") from None
    except GetTimeoutError:
        raise Unavailable(f"{who} does not answer") from None
    except (RayError, ValueError) as error:
        raise Unavailable(f"{who}: {error}") from None


# ---- for the command ----


def run_of(fleet: Fleet) -> RunSpec:
    """Raises `NotFound` where the fleet file does not say how to run it."""
    if fleet.run is None:
        raise NotFound("the fleet file has no section 'run' (repository, store, door): it can be planned, not run")
    return fleet.run


def connect(address: str) -> None:
    """To the Ray cluster at ``address``; ``auto`` is the one of this machine. Raises `Unavailable`."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _own_sigterm():
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(f"no Ray cluster at {address!r} ({error}); `ray start --head` starts one") from None


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """SIGTERM stays whose it was: Ray takes it, and would end this process with nothing cleaned up."""
    if threading.current_thread() is not threading.main_thread():  # there Ray leaves it alone
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def disconnect() -> None:
    """From the cluster that this process is connected to; what is detached goes on."""
    ray.shutdown()


class ControllerHandle:
    """The controller of the fleet ``name``, wherever Ray runs it."""

    def __init__(self, name: str, actor: Any) -> None:
        self._who, self._actor = f"controller of {name!r}", actor

    @classmethod
    def find(cls, name: str) -> ControllerHandle:
        """Raises `NotFound` where there is none."""
        try:
            return cls(name, ray.get_actor(f"{name}/controller", namespace=NAMESPACE))
        except ValueError:
            raise NotFound(f"no fleet {name!r} runs in this Ray cluster; `fmplex fleet up` starts it") from None

    @classmethod
    def start(cls, fleet: Fleet) -> ControllerHandle:
        """The one that runs, or a new one. Raises `FMplexError`."""
        name = run_of(fleet).name
        head = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])
        actor = ray.remote(_ControllerActor).options(
            name=f"{name}/controller",
            get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=True),
            max_concurrency=8,
            **_FOR_EVER,
        )
        return cls(name, _asked(f"controller of {name!r}", lambda: actor.remote(fleet.model_dump_json())))

    def apply(self, fleet: Fleet, contents: Contents) -> None:
        """See `Controller`; likewise the others."""
        self._ask("apply", LONG, fleet.model_dump_json(), contents)

    def drain(self, name: str, undo: bool) -> None:
        """See `Controller`."""
        self._ask("drain", LONG, name, undo)

    def status(self) -> dict[str, Any]:
        """All that it knows."""
        return cast("dict[str, Any]", self._ask("status", LONG))

    def down(self) -> None:
        """End servers, door, agents and the controller itself."""
        self._ask("down", LONG)
        ray.kill(self._actor)

    def _ask(self, method: str, timeout: float, *arguments: Any) -> Any:
        """Asked again while Ray starts it anew: all that can be asked may be asked twice."""
        call, end = getattr(self._actor, method), time.monotonic() + RESTART
        while True:
            try:
                return _asked(self._who, lambda: ray.get(call.remote(*arguments), timeout=timeout))
            except _Restarting:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
