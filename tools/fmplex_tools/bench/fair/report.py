"""Figures as a table for people, as JSON, and as plots."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.bench.fair.shares import BIN

SIZE, DPI = (7.0, 3.0), 80


def table(outcomes: Mapping[str, Outcome]) -> Table:
    """Every figure against its goal."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("figure", overflow="fold")
    for column in ("value", "goal", ""):
        made.add_column(column, justify="right" if column == "value" else "left", no_wrap=True)
    marks = {True: "[green]yes[/]", False: "[bold red]no[/]", None: ""}
    for name, outcome in outcomes.items():
        made.add_row(f"[bold]{escape(name)}[/]")
        for figure in outcome.figures:
            value = f"{_number(figure.value)} {figure.unit}".rstrip()
            made.add_row(f"  {escape(figure.name)}", value, figure.goal, marks[figure.good])
    return made


def _number(value: float) -> str:
    if math.isinf(value):
        return "never"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"


def as_json(outcomes: Mapping[str, Outcome], conditions: Mapping[str, Any]) -> str:
    """Conditions, figures and what the plots are made of."""
    scenarios = {
        name: {"figures": [dataclasses.asdict(figure) for figure in outcome.figures], "details": outcome.details}
        for name, outcome in outcomes.items()
    }
    return json.dumps({"conditions": conditions, "scenarios": scenarios}, indent=1)


def plots(outcomes: Mapping[str, Outcome], folder: Path) -> list[Path]:
    """PNGs of what there is to draw: the share of an edited vFM over time, latencies in a flood."""
    folder.mkdir(parents=True, exist_ok=True)
    drawers = {"weight-edit": _draw_edit, "flood": _draw_flood}
    return [
        draw(outcomes[name].details, folder / f"fair_{name.replace('-', '_')}.png")
        for name, draw in drawers.items()
        if name in outcomes
    ]


def _axes() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=SIZE, dpi=DPI, layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(file)
    pyplot.close(figure)
    return file


def _draw_edit(details: Mapping[str, Any], file: Path) -> Path:
    figure, axes = _axes()
    shares = [math.nan if share is None else share for share in details["share"]]
    axes.step(details["t_s"], shares, where="pre", label=f"measured, in bins of {BIN:g} s")
    bounds = [0.0, *(edit["t_s"] for edit in details["edits"]), details["t_s"][-1]]
    targets = [0.5, *(edit["share"] for edit in details["edits"])]
    for left, right, target in zip(bounds[:-1], bounds[1:], targets, strict=True):
        axes.hlines(target, left, right, colors="tab:green", linestyles="dashed", label="by weight" if not left else "")
    for edit in details["edits"]:
        axes.axvline(edit["t_s"], color="tab:red", linewidth=1)
        axes.annotate(edit["title"], (edit["t_s"], 0.04), xytext=(3, 0), textcoords="offset points", fontsize=8)
    axes.set(xlabel="s", ylabel="share of device time", ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=8)
    return _save(figure, file)


def _draw_flood(details: Mapping[str, Any], file: Path) -> Path:
    figure, axes = _axes()
    for key, title in (("alone_ms", "light, alone"), ("flood_ms", "light, in the flood"), ("flooder_ms", "flooder")):
        if details[key]:
            axes.plot(details[key], range(101), label=title)
    axes.set(xlabel="ms from when the request was due", ylabel="percentile", xscale="log", ylim=(0, 100))
    axes.legend(fontsize=8)
    return _save(figure, file)
