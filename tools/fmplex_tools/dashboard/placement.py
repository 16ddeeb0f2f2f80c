"""Where everything is, as boxes: devices or machines, physical FMs on them, vFMs on those; states in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmplex_tools.dashboard.view import TONES, FmView, ServerView, Snapshot, vfm_state
from fmplex_tools.dashboard.words import Tone, count, few, lasting, percent, since

MOST_CHIPS = 48
"""vFMs of a physical FM that are drawn; those that want attention come first, the rest is counted."""
MOST_LINES = 12
"""Problems that are told one by one."""


@dataclass(frozen=True)
class Line:
    """A sentence beside the boxes."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Chip:
    """One vFM."""

    vfm: str
    tone: Tone
    state: str


@dataclass(frozen=True)
class FmBox:
    """One physical FM on a device."""

    fm: str
    state: str
    tone: Tone
    engines: int
    busy: float | None
    """Part of the engines' time; None where it is not known."""
    chips: tuple[Chip, ...]
    more: int = 0
    """vFMs that are not drawn."""


@dataclass(frozen=True)
class DeviceBox:
    """A device of a fleet, or a server."""

    name: str
    where: str
    state: str
    tone: Tone
    fms: tuple[FmBox, ...] = ()
    used: int = 0
    memory: int = 0
    """Bytes; 0: not known."""
    loose: tuple[Chip, ...] = ()
    """vFMs that are planned for it and not served there yet."""
    more: int = 0


@dataclass(frozen=True)
class Placement:
    """The picture, and what is to be said beside it."""

    devices: tuple[DeviceBox, ...]
    lines: tuple[Line, ...] = ()


def placement(seen: Snapshot) -> Placement:
    """The picture of a snapshot."""
    if seen.fleet is None:
        return Placement(tuple(_machine(server, seen.at) for server in seen.servers), _machine_lines(seen))
    lines = []
    if seen.fleet.silent is not None:
        what = "what it said last is shown" if seen.fleet.told else "it has said nothing yet"
        lines.append(Line("bad", f"no word of the fleet {since(seen.fleet.silent.since, seen.at)}: {what}"))
        lines.append(Line("bad", seen.fleet.silent.why))
    if (told := seen.fleet.told) is None:
        return Placement((), tuple(lines))
    servers = {server.name: server for server in seen.servers}
    boxes = (_device(name, device, servers.get(name), seen.at) for name, device in told["devices"].items())
    return Placement(tuple(boxes), (*lines, *fleet_lines(told)))


# ---- one machine ----


def _machine(server: ServerView, now: float) -> DeviceBox:
    state, tone = _server_state(server, now)
    return DeviceBox(server.name, server.url, state, tone, tuple(_fm_box(fm, now) for fm in server.fms))


def _server_state(server: ServerView, now: float) -> tuple[str, Tone]:
    if server.silent is not None:
        return f"does not answer {since(server.silent.since, now)}", "bad"
    return "answers", "good"


def _machine_lines(seen: Snapshot) -> tuple[Line, ...]:
    lines = []
    for server in seen.servers:
        if server.silent is not None:
            text = f"{server.name} does not answer {since(server.silent.since, seen.at)}: {server.silent.why}"
            lines.append(Line("bad", text))
            continue
        for fm in server.fms:
            if fm.silent is not None:
                lines.append(Line("bad", f"{fm.figures.fm}: {fm.silent.why} {since(fm.silent.since, seen.at)}"))
    return tuple(lines)


def _fm_box(fm: FmView, now: float, states: dict[str, Chip] | None = None) -> FmBox:
    """``states``: vFMs of which a fleet knows better."""
    figures, measured = fm.figures, fm.measured
    chips = []
    for vfm in figures.vfms:
        state = "no answer" if fm.silent else vfm_state(vfm) if measured else "no figures yet"
        known = (states or {}).get(vfm.vfm)
        chips.append(known if known and TONES[state] != "bad" else Chip(vfm.vfm, TONES[state], state))
    drawn, more = _drawn(chips)
    busy = measured.busy if measured is not None else None
    if fm.silent is not None:
        state, tone = f"silent {since(fm.silent.since, now)}", "bad"
    else:
        state, tone = f"{count(figures.engines, 'engine')}, {percent(busy)} busy", "good"
    return FmBox(figures.fm, state, "bad" if tone == "bad" else "good", figures.engines, busy, drawn, more)


def _drawn(chips: list[Chip]) -> tuple[tuple[Chip, ...], int]:
    """By name; where there are too many, those that want attention, and how many are left out."""
    if len(chips) > MOST_CHIPS:
        attention = {"bad": 0, "warn": 1, "good": 2, "idle": 3}
        chips = sorted(chips, key=lambda chip: (attention[chip.tone], chip.vfm))
    shown = sorted(chips[:MOST_CHIPS], key=lambda chip: chip.vfm)
    return tuple(shown), len(chips) - len(shown)


# ---- a fleet ----


def _device(name: str, device: dict[str, Any], server: ServerView | None, now: float) -> DeviceBox:
    state, tone = device_state(device)
    report = device["report"] or {}
    chips = device_chips(device)
    fms = server.fms if server is not None and report.get("up") else ()
    if server is not None and fms and server.silent is not None and device["planned"]:  # else it is being stopped
        state, tone = f"its metrics do not answer {since(server.silent.since, now)}", "bad"
    seen = {vfm.vfm for fm in fms for vfm in fm.figures.vfms}
    loose, more = _drawn([chip for vfm, chip in chips.items() if vfm not in seen])
    where = device["node"] or "no node"
    if report.get("up"):
        where += f" · {report['host']}:{report['ports']['http']}"
    special = {vfm: chip for vfm, chip in chips.items() if chip.tone != "good"}
    return DeviceBox(
        name=name,
        where=where,
        state=state,
        tone=tone,
        fms=tuple(_fm_box(fm, now, special) for fm in fms),
        used=report.get("used", 0),
        memory=report.get("memory", 0),
        loose=loose,
        more=more,
    )


def device_state(device: dict[str, Any]) -> tuple[str, Tone]:
    """In words as `fmplex fleet status` says it."""
    report, lost = device["report"], device["lost_for"]
    if device["node"] is None:
        return ("no node", "idle") if lost is None else (f"lost for {lasting(lost)}", "bad")
    if lost is not None:
        return f"silent for {lasting(lost)}", "bad"
    if device["drained"]:
        return ("draining", "warn") if device["holds"] else ("drained", "idle")
    if report is None:
        return "agent starts", "warn"
    if report["up"]:
        return "serves", "good"
    return ("starts", "warn") if device["planned"] else ("empty", "idle")


def device_chips(device: dict[str, Any]) -> dict[str, Chip]:
    """vFMs that a device has, is to have, or is to have no longer."""
    report = device["report"] or {}
    planned, serving = set(device["planned"]), set(report.get("serving", ()))
    current, problems = set(report.get("current", ())), report.get("problems", {})
    made = {}
    for vfm in sorted(planned | serving | set(report.get("held", ())) | set(device["holds"])):
        if vfm in problems:
            made[vfm] = Chip(vfm, "bad", f"problem: {problems[vfm]}")
        elif vfm not in planned:
            made[vfm] = Chip(vfm, "warn", "leaves")
        elif vfm not in serving:
            made[vfm] = Chip(vfm, "warn", "comes")
        elif vfm not in current:
            made[vfm] = Chip(vfm, "warn", "serves; another version or configuration comes")
        else:
            made[vfm] = Chip(vfm, "good", "serves")
    return made


def fleet_lines(told: dict[str, Any]) -> tuple[Line, ...]:
    """The door, what moves, what is missing, and what is wrong."""
    lines = [_door_line(told)]
    nowhere = sorted(vfm for vfm, devices in told["vfms"].items() if not devices)
    tone: Tone
    for tone, what, names in (
        ("bad", "served by nobody", nowhere),
        ("warn", "on their way", sorted(set(told["moving"]) - set(told["missing"]) - set(nowhere))),
        ("warn", "another version or configuration comes", sorted(set(told["outdated"]) - set(told["moving"]))),
        ("bad", "without a place", told["missing"]),
    ):
        if names:
            lines.append(Line(tone, f"{what}: {few(names)}"))
    if told["stopped"]:
        lines.append(Line("bad", f"the controller does nothing any more: {told['stopped']}"))
    if told["settled"] and not told["missing"]:
        lines.append(Line("good", "all is as planned"))
    problems = [f"{what}: {why}" for what, why in told["problems"].items()]
    for name, device in told["devices"].items():
        problems += [f"{name}: {what}: {why}" for what, why in (device["report"] or {}).get("problems", {}).items()]
    lines += [Line("bad", problem) for problem in problems[:MOST_LINES]]
    if len(problems) > MOST_LINES:
        lines.append(Line("bad", f"… and {len(problems) - MOST_LINES} more: `fmplex fleet status --json`"))
    return tuple(lines)


def _door_line(told: dict[str, Any]) -> Line:
    door = told["door"]
    if door is None:
        return Line("warn", "the door has not been heard of yet")
    served = sum(bool(devices) for devices in told["vfms"].values())
    of = "" if served == len(told["vfms"]) else f" of {len(told['vfms'])}"
    state = "open" if door["up"] else "closed"
    text = f"door {door['address']} (HTTP and gRPC): {state}, leads to {served}{of} vFMs"
    return Line("good" if door["up"] else "bad", text)
