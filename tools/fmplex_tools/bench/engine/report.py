"""What a scenario found, as a table for people, as JSON and as plots."""

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

SERIES = "series"
"""Key of an outcome's details with what is drawn: title of a plot → what → one value a round."""
_MARKS = {True: "[green]yes[/]", False: "[bold red]no[/]", None: ""}
_WIDTH, _LINE, _DPI = 7.0, 0.32, 80


def table(outcome: Outcome, title: str) -> Table:
    """A line a figure: what | figure | goal | met. Figures of one part (`Figure.scenario`) stand together."""
    made = Table(title=escape(title), title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("what", overflow="fold")
    made.add_column("figure", justify="right")
    made.add_column("goal", no_wrap=True)
    made.add_column("met", no_wrap=True)
    part = None
    for figure in outcome.figures:
        if figure.scenario != part:
            part = figure.scenario
            made.add_row(f"[bold]{escape(part)}[/]")
        value = f"{number(figure.value)} {figure.unit}".rstrip()
        made.add_row(f"  {escape(figure.name)}", escape(value), escape(figure.goal), _MARKS[figure.good])
    return made


def number(value: float) -> str:
    """Three or four digits that matter."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"


def as_json(outcome: Outcome, conditions: Mapping[str, Any]) -> str:
    """Conditions, figures and what they were made of."""
    figures = [dataclasses.asdict(figure) for figure in outcome.figures]
    whole = {"conditions": conditions, "figures": figures, "details": outcome.details}
    return json.dumps(_finite(whole), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    """With null for what is no number: JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plots(name: str, outcome: Outcome, folder: Path) -> list[Path]:
    """A PNG for each of the outcome's series: how far the values of each line are spread over the rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for title, lines in outcome.details.get(SERIES, {}).items():
        slug = "".join(c if c.isalnum() else "_" for c in title.lower())
        drawn.append(_draw(title, lines, folder / f"engine_{name}_{slug}.png"))
    return drawn


def _draw(title: str, lines: Mapping[str, list[float]], file: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(_WIDTH, 1.2 + _LINE * len(lines)), dpi=_DPI, layout="constrained")
    axes.boxplot(list(lines.values()), orientation="horizontal", tick_labels=list(lines), widths=0.6, sym=".")
    axes.invert_yaxis()  # the first line on top, as in the table
    axes.set(xlabel=title, xlim=(0, None))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file)
    pyplot.close(figure)
    return file
