"""Figures as a table, as files and as a plot."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fmplex_tools.bench.simulate.figures import Figures, Latency

SACRIFICED = ("padding", "flooder\np99 ms", "light\np50 ms", "useful", "expired", "vFMs/\nbatch", "rejected", "Jain")
"""Columns that a narrow terminal goes without, in this order."""
MARKDOWN = (
    "device", "load", "lengths", "vFMs", "policy", "rows/s", "useful", "light mean ms", "light p50", "light p99",
    "flooder mean ms", "Jain", "rows/batch", "vFMs/batch", "padding", "rejected", "µs/decision",
)  # fmt: skip
STYLES = ("-", "--", "-.", ":")
"""Of the lines of a plot: one may lie on another."""


def table(found: Sequence[Figures], title: str, width: int = 200) -> Table:
    """For people: columns that have something to say, as many as ``width`` has room for."""
    columns = _columns(found)
    for name in [name for name, cells in columns.items() if set(cells) <= {"–", "0", "0 %", "0.0 %"}]:
        del columns[name]
    for name in SACRIFICED:
        if sum(_width(name, cells) + 2 for name, cells in columns.items()) > width:
            columns.pop(name, None)
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        made.add_row(*cells)
    return made


def _width(name: str, cells: Iterable[str]) -> int:
    return max(len(text) for text in (*name.split("\n"), *cells))


def _columns(found: Sequence[Figures]) -> dict[str, list[str]]:
    """Heading → a cell for each of ``found``."""
    cells: dict[str, Callable[[Figures], str]] = {
        "policy": lambda f: f.policy,
        "rows/s": lambda f: f"{f.rows_per_s:,.0f}",
        "useful": lambda f: _percent(f.useful),
        "light\nmean ms": lambda f: _part(f.light, "mean"),
        "light\np50 ms": lambda f: _part(f.light, "p50"),
        "light\np99 ms": lambda f: _part(f.light, "p99"),
        "flooder\nmean ms": lambda f: _part(f.flood, "mean"),
        "flooder\np99 ms": lambda f: _part(f.flood, "p99"),
        "Jain": lambda f: "–" if f.jain is None else f"{f.jain:.4f}",
        "rows/\nbatch": lambda f: f"{f.rows_per_batch:.1f}",
        "vFMs/\nbatch": lambda f: f"{f.vfms_per_batch:.1f}",
        "padding": lambda f: _percent(f.padding),
        "rejected": lambda f: f"{f.rejected + f.flood_rejected:,}",
        "expired": lambda f: f"{f.expired:,}",
        "decision\nµs": lambda f: f"{f.decision_us:,.0f}",
    }
    return {name: [cell(figure) for figure in found] for name, cell in cells.items()}


def markdown(found: Iterable[Figures]) -> str:
    """A table for a document."""
    lines = [f"| {' | '.join(MARKDOWN)} |", "|" + "---|" * len(MARKDOWN)]
    for figure in found:
        cells = (
            figure.cost,
            figure.load,
            figure.lengths,
            str(figure.vfms),
            figure.policy,
            f"{figure.rows_per_s:,.0f}",
            _percent(figure.useful),
            *(_part(figure.light, part) for part in ("mean", "p50", "p99")),
            _part(figure.flood, "mean"),
            "–" if figure.jain is None else f"{figure.jain:.4f}",
            f"{figure.rows_per_batch:.1f}",
            f"{figure.vfms_per_batch:.1f}",
            _percent(figure.padding),
            f"{figure.rejected}",
            f"{figure.decision_us:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(found: Sequence[Figures]) -> str:
    """A line for each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0].plain()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(figure.plain() for figure in found)
    return text.getvalue()


def as_json(found: Sequence[Figures]) -> str:
    """An array of objects."""
    return json.dumps([figure.plain() for figure in found], indent=1) + "\n"


def _part(latency: Latency | None, part: str) -> str:
    return "–" if latency is None else milliseconds(getattr(latency, part))


def milliseconds(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.0995 or part == 0 else f"{100 * part:.1f} %"


def plot(found: Sequence[Figures], path: Path) -> None:
    """Latencies of the light vFMs, and bars of rows a second, for each policy. Several loads are rows of panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    loads: dict[str, list[Figures]] = {}
    for figure in found:
        name = f"{figure.cost}, {figure.vfms} vFMs, {figure.lengths} tokens, {figure.load}"
        loads.setdefault(name, []).append(figure)
    canvas, panels = plt.subplots(
        len(loads), 2, figsize=(11, 3.4 * len(loads)), squeeze=False, layout="constrained", width_ratios=(3, 2)
    )
    for (title, group), (left, right) in zip(loads.items(), panels, strict=True):
        if any(figure.latencies for figure in group):
            _distribution(left, group)
        else:
            _bars(left, group, [figure.jain or 0.0 for figure in group], "Jain's index of device time per weight")
        left.set_title(title, loc="left", fontsize=10)
        _bars(right, group, [figure.rows_per_s for figure in group], "rows/s")
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _distribution(axes: Any, group: Sequence[Figures]) -> None:
    for figure, style in zip(group, itertools.cycle(STYLES)):
        times, total = figure.latencies, len(figure.latencies)
        if not total:
            continue
        step = max(1, total // 2000)
        axes.plot(
            [1e3 * time for time in times[::step]],
            [(place + 1) / total for place in range(0, total, step)],
            label=figure.policy,
            linestyle=style,
        )
    axes.set_xscale("log")
    axes.set_xlabel("latency of light vFMs, ms")
    axes.set_ylabel("part of the rows")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _bars(axes: Any, group: Sequence[Figures], values: Sequence[float], label: str) -> None:
    names = [figure.policy for figure in group]
    bars = axes.bar(names, values, color=[f"C{place}" for place in range(len(names))])
    axes.bar_label(bars, [f"{value:,.4g}" for value in values], fontsize=8)
    axes.set_ylabel(label)
    axes.tick_params(axis="x", labelsize=8)
