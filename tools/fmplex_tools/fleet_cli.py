"""``fmplex fleet``: run a planned fleet on a Ray cluster, behind one door."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from fmplex_backend.errors import InvalidInput, Unavailable
from fmplex_tools.console import err, out
from fmplex_tools.fleet_kubernetes_cli import kubernetes
from fmplex_tools.planner.fleet_file import Fleet, read_fleet

if TYPE_CHECKING:
    from fmplex_tools.fleet.actors import ControllerHandle

app = typer.Typer(no_args_is_help=True, help="Run a planned fleet on a Ray cluster, behind one door for all clients.")
app.command()(kubernetes)

FleetFile = Annotated[Path, typer.Argument(help="Fleet file with a section 'run'; `fmplex plan --example` prints one.")]
Address = Annotated[str, typer.Option(help="Of the Ray cluster; auto: the one that runs on this machine.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds until all must be as planned; 0 does not wait.")]
Name = Annotated[str, typer.Option("--fleet", help="Its name, 'run.name' in the fleet file.")]
_LOOK = 0.5
"""Seconds between two looks at a fleet that is waited for."""
_JOIN = 20.0
"""Seconds for nodes to join that have been started just now."""


@app.command()
def up(
    fleet: FleetFile,
    address: Address = "auto",
    local: Annotated[
        int, typer.Option(min=0, max=64, help="First start a Ray cluster of so many nodes on this machine, to try it.")
    ] = 0,
    wait: Wait = 600.0,
) -> None:
    """Start the fleet: the controller, an agent on every node, the door; then as `fmplex fleet apply`.

    Nodes offer devices as Ray's custom resources: `ray start --address HEAD:6379 --resources '{"fmplex:cpu": 1}'`.
    What was saved in the store is taken up.

    Examples:

      fmplex fleet up fleet.yaml --local 4

      fmplex fleet up fleet.yaml --address 10.0.0.1:6379
    """
    wanted = read_fleet(fleet)
    if local:
        from fmplex_tools.fleet.local import start_nodes

        with err.status(f"starting {local} Ray nodes on this machine"):
            start_nodes(wanted, local)
    _apply(wanted, address, wait, start=True)


@app.command()
def apply(fleet: FleetFile, address: Address = "auto", wait: Wait = 600.0) -> None:
    """Make the running fleet what the file and its repository say now, moving as little as can be, under load.

    New versions and configurations are put into the store and swapped in; vFMs that move serve at their new place
    before the door leads there. Exits with 1 where a vFM has no place, or not all is as planned in time.

    Examples:

      fmplex fleet apply fleet.yaml

      fmplex fleet apply fleet.yaml --wait 0
    """
    _apply(read_fleet(fleet), address, wait, start=False)


@app.command()
def status(
    name: Name = "fleet",
    address: Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="All that the controller knows.")] = False,
) -> None:
    """Devices, what they hold and how they are; what is moving, missing or wrong.

    Examples:

      fmplex fleet status

      fmplex fleet status --json
    """
    from fmplex_tools.fleet.show import shown

    with _connected(address):
        told = _controller(name).status()
    if as_json:
        print(json.dumps(told))
    else:
        out.print(shown(told))


@app.command()
def drain(
    node: Annotated[str, typer.Argument(help="A node or device, as `fmplex fleet status` names them.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it be used again.")] = False,
    name: Name = "fleet",
    address: Address = "auto",
    wait: Wait = 600.0,
) -> None:
    """Empty a node: its vFMs are served elsewhere before they go. Those that have no place elsewhere stay.

    Examples:

      fmplex fleet drain cpu-3

      fmplex fleet drain cpu-3 --undo
    """
    with _connected(address):
        controller = _controller(name)
        controller.drain(node, undo)
        told = _follow(controller, wait)
    _tell(told, wait)


@app.command()
def down(name: Name = "fleet", address: Address = "auto") -> None:
    """End every server, the door, the agents and the controller. The store keeps all; `fmplex fleet up` takes it up.

    Examples:

      fmplex fleet down
    """
    with _connected(address), err.status("stopping: servers answer what is in flight"):
        _controller(name).down()
    out.print(f"fleet {name!r} is down; its store keeps what it was")


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """To the Ray cluster. What Ray prints of its own, until it is disconnected, goes to standard error."""
    from fmplex_tools.fleet.actors import connect, disconnect

    with contextlib.redirect_stdout(sys.stderr):
        connect(address)
        try:
            yield
        finally:
            disconnect()


def _controller(name: str) -> ControllerHandle:
    from fmplex_tools.fleet.actors import ControllerHandle

    return ControllerHandle.find(name)


def _apply(fleet: Fleet, address: str, wait: float, *, start: bool) -> None:
    from fmplex_tools.fleet.actors import ControllerHandle, run_of
    from fmplex_tools.fleet.content import read_contents

    run = run_of(fleet)
    with _connected(address):
        with err.status("connecting") as state:
            controller = ControllerHandle.start(fleet) if start else ControllerHandle.find(run.name)
            contents = read_contents(fleet, run.repository, run.store, lambda vfm: state.update(f"storing {vfm}"))
            state.update("planning")
            controller.apply(fleet, contents)
        told = _follow(controller, wait)
    _tell(told, wait)


def _follow(controller: ControllerHandle, wait: float) -> dict[str, Any]:
    """Show how the fleet gets to what it is to be, for ``wait`` seconds at most; its last state."""
    from fmplex_tools.fleet.show import shown

    begun = time.monotonic()
    told = controller.status()
    try:
        with Live(shown(told), console=err, transient=True, auto_refresh=False) as live:
            while not _done(told, time.monotonic() - begun) and time.monotonic() - begun < wait:
                time.sleep(_LOOK)
                told = controller.status()
                live.update(shown(told), refresh=True)
    except KeyboardInterrupt:
        err.print("not waited for any more; the fleet goes on by itself: `fmplex fleet status`")
        raise typer.Exit(130) from None
    return told


def _tell(told: dict[str, Any], wait: float) -> None:
    """What came of it. Raises `Unavailable` where that took too long, `InvalidInput` where vFMs have no place."""
    from fmplex_tools.fleet.show import shown

    out.print(shown(told))
    if not told["settled"] and wait:
        raise Unavailable(f"after {wait:.0f} s {_late(told)}; the fleet goes on trying: `fmplex fleet status`")
    if missing := told["missing"]:
        few = f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
        raise InvalidInput(f"{len(missing)} vFMs have no place ({few}): `fmplex plan` on the fleet file tells why")


def _done(told: dict[str, Any], seconds: float) -> bool:
    """Whether all is as it is to be; where vFMs have no place, nodes that are still to come are waited for."""
    nodes = all(device["node"] is not None for device in told["devices"].values())
    return bool(told["settled"]) and not told["awaited"] and (not told["missing"] or nodes or seconds > _JOIN)


def _late(told: dict[str, Any]) -> str:
    names = told["outdated"] or told["moving"]
    if not names:
        return "not all is as planned"
    return f"{len(names)} vFMs are not served as planned ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
