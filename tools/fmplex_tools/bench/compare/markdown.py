"""A record as Markdown, to stand in the results: where FMplex is worse first, then every table. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from fmplex_tools.bench.compare.deployments import title_of
from fmplex_tools.bench.compare.most_tasks import Target, Trial
from fmplex_tools.bench.compare.records import Record
from fmplex_tools.bench.compare.verdicts import CPU, MEAN, OURS, P99, RATE, STANDINGS, Measure, Table, worse

WORST = 12
_ALIKE = """On a CPU, private models compute with a thread each and FMplex has an engine with a thread for each core;
what serves all tasks from one model uses every core. FMplex alone keeps weights packed for small batches, which torch
does not do by itself."""


def as_markdown(record: Record, conditions: Mapping[str, object]) -> str:
    """The whole report."""
    table = Table(record)
    parts = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in conditions.items()) + ".", _ALIKE]
    parts += _worse(record)
    for tasks in table.tasks:
        for measure in (MEAN, P99):
            parts.append(_by_case(table, tasks, measure))
    parts.append(_ratios(table))
    parts.append(_standings(table))
    parts.append(_load(table))
    if table.rounds > 1:
        parts.append(_spread(table))
    parts += [f"Not measured: {f.deployment} with {f.tasks} tasks: {f.reason}" for f in record.failures]
    return "\n\n".join(parts) + "\n"


def most_tasks_as_markdown(target: Target, trials: Mapping[str, list[Trial]]) -> str:
    """Every number of tasks that was tried, of each deployment."""
    rows = [
        [
            title_of(name),
            f"{trial.tasks:,}",
            "yes" if trial.met else "no",
            "–" if trial.p99_ms is None else f"{trial.p99_ms:,.0f}",
            f"{trial.memory_bytes / 1e9:.2f}",
            f"{trial.ready_seconds:.0f}",
            trial.why,
        ]
        for name, tried in trials.items()
        for trial in sorted(tried, key=lambda trial: trial.tasks)
    ]
    head = f"{target.demand:g} requests/s a task, p99 ≤ {target.p99_ms:g} ms"
    return "\n" + _table([head, "tasks", "met", "p99 ms", "GB", "s to ready", "what stood in the way"], rows) + "\n"


def _worse(record: Record) -> list[str]:
    found = worse(record)
    if not found:
        return ["**FMplex is worse nowhere** in this run, beyond 2 %."]
    more = [f"- … and {len(found) - WORST} more, smaller ones"] if len(found) > WORST else []
    return ["**Where FMplex is worse**", "\n".join([f"- {sentence}" for sentence in found[:WORST]] + more)]


def _by_case(table: Table, tasks: int, measure: Measure) -> str:
    cases = table.cases(tasks)
    rows = [
        [title_of(name), *(_number(table.value(measure, name, tasks, case)) for case in cases)]
        for name in table.deployments
    ]
    return _table([f"{measure.title} in {measure.unit}, {tasks} tasks", *cases], rows)


def _ratios(table: Table) -> str:
    others = [name for name in table.deployments if name != OURS]
    rows = [
        [f"{tasks} tasks, {case}", *(_ratio(table.ratio(MEAN, name, tasks, case)) for name in others)]
        for tasks in table.tasks
        for case in table.cases(tasks)
    ]
    return _table(["FMplex's mean latency, of that of", *map(title_of, others)], rows)


def _standings(table: Table) -> str:
    rows = []
    for tasks in table.tasks:
        for title, unit, of in STANDINGS:
            values = [_number(table.standing(of, name, tasks)) for name in table.deployments]
            rows.append([f"{tasks} tasks: {title}, {unit}", *values])
    return _table(["", *map(title_of, table.deployments)], rows)


def _load(table: Table) -> str:
    rows = []
    for tasks in table.tasks:
        for case in table.cases(tasks):
            for measure in (RATE, CPU):
                values = [_number(table.value(measure, name, tasks, case)) for name in table.deployments]
                rows.append([f"{tasks} tasks, {case}: {measure.title}", *values])
    return _table(["", *map(title_of, table.deployments)], rows)


def _spread(table: Table) -> str:
    rows = [
        [f"{tasks} tasks, {case}", *(_percent(table.spread(MEAN, name, tasks, case)) for name in table.deployments)]
        for tasks in table.tasks
        for case in table.cases(tasks)
    ]
    return _table(["spread of the mean latency over the rounds", *map(title_of, table.deployments)], rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))


def _or_dash(form: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: "–" if math.isnan(value) else form(value)


_number = _or_dash(lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
_ratio = _or_dash(lambda value: f"{value:.2f}×")
_percent = _or_dash(lambda value: f"{100 * value:.0f} %")
