"""What a plan says, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmplex_tools.planner.alternatives import Without, without
from fmplex_tools.planner.planning import Plan, devices_more, missing_of
from fmplex_tools.planner.problem import Problem
from fmplex_tools.planner.replan import Changes

SHOWN = 12
"""Lines of a kind before the rest is counted."""


def show(plan: Plan, console: Console, *, compare: bool) -> None:
    """Everything, on ``console``; with ``compare`` also what the fleet would take without sharing."""
    _summary(plan, console)
    console.print(_devices(plan))
    console.print(_fms(plan))
    if compare:
        console.print(_without(plan))
    if plan.findings:
        _simulated(plan, console)
    if plan.changes is not None:
        _changes(plan.changes, plan.problem, console)
    for line in _missing_lines(plan):
        console.print(line)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _summary(plan: Plan, console: Console) -> None:
    problem, placement = plan.problem, plan.placement
    used, price = int(plan.packing.used.sum()), placement.price(problem)
    gap = "" if price <= plan.bound * (1 + 1e-9) else f", at most {price / plan.bound - 1:.1%} above what any could do"
    gap = gap if plan.bound and not placement.missing(problem) else ""
    console.print(
        f"[bold]{problem.count(placement.on):,} of {problem.vfms:,} vFMs on {used:,} of {problem.devices:,} "
        f"devices[/]: {escape(plan.how)}{gap}"
    )


def _devices(plan: Plan) -> Table:
    """What is full, kind by kind, and which of the limits it is that ends each."""
    table = _table("Devices", "kind", "used", "vFMs on each", "memory", "time", "slots", "what fills them")
    packing, problem = plan.packing, plan.problem
    for number, kind in enumerate(problem.kinds):
        used = [d for d, own in enumerate(problem.kind_of) if own == number and packing.on[d]]
        if not used:
            table.add_row(kind.name, f"0 of {kind.count:,}", *"–––––")
            continue
        full = [packing.fullness(device) for device in used]
        means = {name: sum(one[name] for one in full) / len(full) for name in full[0]}
        limits = Counter(max(one, key=lambda name: one[name]) for one in full)
        vfms = [packing.vfms_on(device) for device in used]
        spread = f"{min(vfms):,}" if min(vfms) == max(vfms) else f"{min(vfms):,} to {max(vfms):,}"
        what = ", ".join(f"{name} ({count:,})" for name, count in limits.most_common())
        table.add_row(
            kind.name, f"{len(used):,} of {kind.count:,}", spread, *(f"{share:.0%}" for share in means.values()), what
        )
    return table


def _fms(plan: Plan) -> Table:
    table = _table("Physical FMs", "FM", "replicas", "vFMs", "of them on several devices", "MB in all")
    problem, placement = plan.problem, plan.placement
    for number, fm in enumerate(problem.fms):
        demands = [demand for demand in problem.demands if demand.fm == number]
        names = [name for demand in demands for name in demand.names if name in placement.on]
        replicas = {device for name in names for device in placement.on[name]}
        several = problem.count(name for name in names if len(placement.on[name]) > 1)
        own = sum(d.memory * len(placement.on[name]) for d in demands for name in d.names if name in placement.on)
        table.add_row(
            fm.name,
            f"{len(replicas):,}",
            f"{problem.count(names):,}",
            f"{several:,}",
            f"{(own + fm.memory * len(replicas)) / 1e6:,.0f}",
        )
    return table


def _without(plan: Plan) -> Table:
    problem, placement = plan.problem, plan.placement
    table = _table("The same fleet without sharing", "", "vFMs hosted here", "devices for all of them")
    used = Counter(problem.kinds[problem.kind_of[device]].name for device in placement.by_device())
    whole = ", ".join(f"{count:,} {kind}" for kind, count in used.items())
    table.add_row("shared", f"{problem.count(placement.on):,}", whole if not placement.missing(problem) else "–")
    for title, found in (
        ("private copies", without(problem, "private")),
        ("spatial partitions", without(problem, "spatial")),
    ):
        table.add_row(title, f"{found.hosted:,}", _needed(found))
    return table


def _needed(found: Without) -> str:
    return " or ".join(f"{count:,} {kind}" for kind, count in found.devices.items() if count is not None) or "never"


def _simulated(plan: Plan, console: Console) -> None:
    worst = max(plan.findings, key=lambda finding: finding.p99 / plan.problem.demands[finding.demand].target)
    demand = plan.problem.demands[worst.demand]
    late = [finding for finding in plan.findings if not finding.good]
    verdict = "[green]all in time[/]" if not late else f"[red]{len(late)} groups of vFMs too late[/]"
    more = f"; placed anew {plan.tightenings} times, with more room" if plan.tightenings else ""
    console.print(
        f"Simulated {len({finding.device for finding in plan.findings})} devices: {verdict}{more}. Nearest to its "
        f"target: {demand.names[0]} on {plan.problem.device_names[worst.device]}, p99 {worst.p99 * 1e3:,.0f} ms of "
        f"{demand.target * 1e3:,.0f}"
    )
    for finding in late[:SHOWN]:
        demand = plan.problem.demands[finding.demand]
        console.print(
            f"  [red]late[/]: {demand.names[0]} on {plan.problem.device_names[finding.device]}: {finding.late:.1%} of "
            f"its rows take longer than {demand.target * 1e3:,.0f} ms"
        )


def _changes(done: Changes, problem: Problem, console: Console) -> None:
    console.print(f"{len(done.added):,} added, {len(done.removed):,} removed, {len(done.moved):,} moved")
    for vfm, (old, new) in list(done.moved.items())[:SHOWN]:
        names = problem.device_names
        there = ", ".join(names[device] for device in new) or "nowhere"
        console.print(f"  {vfm}: {', '.join(names[device] for device in old)} → {there}")
    if len(done.moved) > SHOWN:
        console.print(f"  and {len(done.moved) - SHOWN:,} more")


def _missing_lines(plan: Plan) -> Iterator[str]:
    missing = missing_of(plan)
    for one in missing[:SHOWN]:
        names = one.names[0] if len(one.names) == 1 else f"{one.names[0]} and {len(one.names) - 1:,} like it"
        yield f"[red]no place[/]: {names}: {escape(one.why or 'the devices are full')}"
    if len(missing) > SHOWN:
        yield f"  and {len(missing) - SHOWN:,} kinds of vFMs more"
    if more := devices_more(plan):
        yield "what would do: " + " or ".join(f"{count:,} more {kind}" for kind, count in more.items())
