"""A record drawn: latency against load, distributions, memory against tasks, answers over time in a flood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmplex_tools.bench.compare.deployments import title_of
from fmplex_tools.bench.compare.plan import FLOOD, LOADS
from fmplex_tools.bench.compare.records import Record
from fmplex_tools.bench.compare.verdicts import MEAN, P99, RATE, STANDINGS, Table

DPI = 80
MARKS = ("o", "s", "^", "v", "D", "x")


def draw(record: Record, folder: Path) -> list[Path]:
    """PNGs of all that there is to draw, ``compare_*.png``."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(record)
    tasks = max(table.tasks, key=lambda count: len(table.cases(count)))
    drawn = [_load(table, folder / "compare_load.png"), _memory(table, folder / "compare_memory.png")]
    drawn.append(_distributions(table, tasks, folder / "compare_cdf.png"))
    if FLOOD in table.cases(tasks):
        drawn.append(_flood(table, tasks, folder / "compare_flood.png"))
    return drawn


def _load(table: Table, file: Path) -> Path:
    """Mean, p99 and answers a second over what is asked for, a column for each number of tasks."""
    from matplotlib import pyplot

    counts = table.tasks
    size = (max(7.0, 3.2 * len(counts) + 1), 7.0)
    figure, grid = pyplot.subplots(
        3, len(counts), figsize=size, dpi=DPI, layout="constrained", squeeze=False, sharex=True, sharey="row"
    )
    parts = [100 * part for part in LOADS.values()]
    for column, tasks in enumerate(counts):
        for row, measure in enumerate((MEAN, P99, RATE)):
            axes = grid[row][column]
            for name, mark in zip(table.deployments, MARKS, strict=False):
                axes.plot(
                    parts, [table.value(measure, name, tasks, case) for case in LOADS], mark + "-", label=title_of(name)
                )
            axes.set(yscale="linear" if measure is RATE else "log", title=f"{tasks} tasks" if row == 0 else "")
            axes.grid(alpha=0.3)
        grid[2][column].set(xlabel="load, % of what best-effort co-location can do", xticks=parts)
    for axes, label in zip(grid[:, 0], ("mean, ms", "p99, ms", "answers a second"), strict=True):
        axes.set_ylabel(label)
    grid[2][0].set_ylim(bottom=0)  # after all is drawn: a limit ends the scaling of the whole row
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return _save(figure, file)


def _distributions(table: Table, tasks: int, file: Path) -> Path:
    from matplotlib import pyplot, ticker

    figure, row = pyplot.subplots(1, len(LOADS), figsize=(10.0, 3.2), dpi=DPI, layout="constrained", sharey=True)
    for axes, case in zip(row, LOADS, strict=True):
        for name in table.deployments:
            for cell in table.cells(name, tasks, case)[:1]:
                axes.plot([ms for ms, _ in cell.cdf], [part for _, part in cell.cdf], label=title_of(name))
        axes.set(xscale="log", xlabel=f"ms, {case} load", ylim=(0, 1))
        axes.xaxis.set(
            major_locator=ticker.LogLocator(subs=(1, 3)),
            major_formatter=ticker.StrMethodFormatter("{x:g}"),
            minor_formatter=ticker.NullFormatter(),
        )
        axes.grid(alpha=0.3)
    row[0].set_ylabel(f"part of the requests, {tasks} tasks")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return _save(figure, file)


def _memory(table: Table, file: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.0, 3.2), dpi=DPI, layout="constrained")
    _, _, memory = STANDINGS[0]
    for name, mark in zip(table.deployments, MARKS, strict=False):
        axes.plot(
            table.tasks,
            [table.standing(memory, name, tasks) for tasks in table.tasks],
            mark + "-",
            label=title_of(name),
        )
    axes.set(xlabel="tasks", ylabel="GB of memory (PSS)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, file)


def _flood(table: Table, tasks: int, file: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 3.2), dpi=DPI, layout="constrained")
    for name, mark in zip(table.deployments, MARKS, strict=False):
        for cell in table.cells(name, tasks, FLOOD)[:1]:
            axes.plot(range(len(cell.per_second)), cell.per_second, mark + "-", alpha=0.8, label=title_of(name))
    title = f"{tasks - 1} tasks beside one that floods"
    axes.set(title=title, xlabel="s", ylabel="answers a second", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return _save(figure, file)


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(file)
    pyplot.close(figure)
    return file
