"""A fleet's status for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

_MOST_LINES = 12


def shown(told: dict[str, Any]) -> RenderableType:
    """``told``: what `fmplex_tools.fleet.controller.Controller.status` says."""
    table = Table(title=f"fleet {told['name']}", title_justify="left")
    for column in ("device", "node", "state"):
        table.add_column(column)
    for column in ("vFMs", "serving", "memory MB"):
        table.add_column(column, justify="right")
    table.add_column("HTTP")
    for name, device in told["devices"].items():
        report = device["report"] or {}
        served = f"{len(report.get('serving', ()))}"
        used = f"{report['used'] / 1e6:,.0f}" if report.get("used") else "–"
        where = f"{report['host']}:{report['ports']['http']}" if report.get("up") else "–"
        row = [name, escape(device["node"] or "–"), _state(device), str(len(device["planned"])), served, used, where]
        table.add_row(*row)
    lines = []
    door = told["door"]
    if door is not None:
        state = "[green]open[/]" if door["up"] else "[red]closed[/]"
        lines.append(f"door {door['address']} (HTTP and gRPC): {state}, leads to {_count(told['vfms'])}")
    for kind, count in told["awaited"].items():
        lines.append(f"waiting for {count} more of {kind!r}, which Ray's autoscaler was asked for")
    nowhere = sorted(vfm for vfm, devices in told["vfms"].items() if not devices and vfm not in told["sleeping"])
    for what, names in (
        ("asleep until somebody asks", told["asleep"]),
        ("served by nobody", nowhere),
        ("on their way", sorted(set(told["moving"]) - set(told["missing"]) - set(nowhere))),
        ("without a place", told["missing"]),
    ):
        if names:
            lines.append(f"{what}: {_few(names)}")
    if told["stopped"]:
        lines.append(f"[red]the controller does nothing any more: {escape(told['stopped'])}[/]")
    problems = [f"{what}: {why}" for what, why in told["problems"].items()]
    for name, device in told["devices"].items():
        problems += [f"{name}: {what}: {why}" for what, why in (device["report"] or {}).get("problems", {}).items()]
    lines += [f"[red]{escape(problem)}[/]" for problem in problems[:_MOST_LINES]]
    if len(problems) > _MOST_LINES:
        lines.append(f"[red]… and {len(problems) - _MOST_LINES} more[/]")
    return Group(table, *lines)


def _state(device: dict[str, Any]) -> str:
    if device["node"] is None:
        lost = device["lost_for"]
        return "[red]no node[/]" if lost is None else f"[red]lost for {lost:.0f} s[/]"
    if device["released"]:
        return "not needed"
    if device["lost_for"] is not None:
        return f"[red]silent for {device['lost_for']:.0f} s[/]"
    report = device["report"]
    if device["drained"]:
        return "[yellow]draining[/]" if device["holds"] else "drained"
    if report is None:
        return "[yellow]agent starts[/]"
    if report["up"]:
        return "[green]serves[/]"
    return "[yellow]starts[/]" if device["planned"] else "empty"


def _count(vfms: dict[str, list[str]]) -> str:
    served = sum(bool(devices) for devices in vfms.values())
    return f"{served} vFMs" if served == len(vfms) else f"{served} of {len(vfms)} vFMs"


def _few(names: list[str]) -> str:
    more = f" … ({len(names)} in all)" if len(names) > 6 else ""
    return escape(", ".join(names[:6]) + more)
