"""Charts of the last minutes: ECharts' options, and the series that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from fmplex_tools.dashboard.history import SPAN, Series, line_of

_GREY = "#8b95a1"
"""Readable on light and on dark."""
_RULE = "rgba(139,149,161,.22)"
PALETTE = ("#2B8CCB", "#E69F00", "#009E73", "#D55E00")
"""Near Okabe and Ito's, readable on light and on dark; lines also differ in their dashes."""
_DASHES = ("solid", "dashed", "dotted", [10, 3, 2, 3])


@dataclass(frozen=True)
class Shown:
    """One line of a chart."""

    field: str
    label: str
    scale: float = 1.0


class Chart:
    """Lines over the last minutes. `update` moves them; only the points are sent then."""

    def __init__(
        self,
        title: str,
        lines: Sequence[Shown],
        *,
        limit: float | None = None,
        top: float | None = None,
    ) -> None:
        """``limit``: a line across, such as an objective; ``top``: the axis' end where it is known."""
        self._lines = lines
        self._sent: list[list[list[float | None]]] | None = None
        with ui.element("div"):
            ui.label(title).classes("chart-title")
            self._chart = ui.echart(_options(lines, limit, top)).classes("chart")

    def update(self, series: Series) -> None:
        """See `fmplex_tools.dashboard.followed.Followed.history`."""
        data = [line_of(series, line.field, line.scale) for line in self._lines]
        if data != self._sent:
            self._sent = data
            self._chart.run_chart_method("setOption", {"series": [{"data": points} for points in data]})


def _options(lines: Sequence[Shown], limit: float | None, top: float | None) -> dict[str, Any]:
    axis: Mapping[str, Any] = {
        "axisLabel": {"color": _GREY, "fontSize": 11},
        "splitLine": {"lineStyle": {"color": _RULE}},
    }
    ago = "(v) => v === 0 ? 'now' : (-v / 60) + ' min'"
    return {
        "animation": False,
        "grid": {"left": 44, "right": 12, "top": 24 if len(lines) > 1 else 10, "bottom": 22},
        "legend": {
            "show": len(lines) > 1,
            "top": 0,
            "right": 8,
            "itemHeight": 8,
            "textStyle": {"color": _GREY, "fontSize": 11},
        },
        "tooltip": {"trigger": "axis", "confine": True, "transitionDuration": 0},
        "xAxis": {
            **axis,
            "type": "value",
            "min": -SPAN,
            "max": 0,
            "interval": 60,
            "axisLabel": {"color": _GREY, "fontSize": 11, ":formatter": ago},
            "axisPointer": {"label": {":formatter": "(p) => Math.round(-p.value) + ' s ago'"}},
            "splitLine": {"show": False},
            "axisLine": {"lineStyle": {"color": _RULE}},
        },
        "yAxis": {
            **axis,
            "type": "value",
            "min": 0,
            "max": top,
            "interval": top and top / 4,
            "splitNumber": 3,
            "axisLine": {"show": False},
            "axisTick": {"show": False},
        },
        "series": [_line(line, place, limit if place == 0 else None) for place, line in enumerate(lines)],
    }


def _line(line: Shown, place: int, limit: float | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": line.label,
        "type": "line",
        "data": [],
        "showSymbol": False,
        "color": PALETTE[place],
        "lineStyle": {"width": 1.6, "type": _DASHES[place]},
        "areaStyle": {"opacity": 0.13} if place == 0 else None,
        "emphasis": {"disabled": True},
    }
    if limit is not None:
        made["markLine"] = {
            "silent": True,
            "symbol": "none",
            "label": {"color": _GREY, "formatter": "objective", "position": "insideEndTop", "fontSize": 11},
            "lineStyle": {"color": _GREY, "type": "dashed"},
            "data": [{"yAxis": limit}],
        }
    return made
