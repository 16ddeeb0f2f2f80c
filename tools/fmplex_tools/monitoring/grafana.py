"""Dashboards as Grafana reads them: a description of rows and panels becomes its JSON.

Only what a description needs: time series, single figures, tables and heatmaps of Prometheus' answers, 24 columns wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_SCHEMA = 41
"""Of Grafana 11 and 12, which bring older ones up to theirs when they read them."""


@dataclass(frozen=True)
class Query:
    """One expression of PromQL, with Grafana's variables in it; ``legend`` names each series of it by its labels."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture of one or more queries."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Of the values, as Grafana calls it: ``s``, ``reqps``, ``percentunit``, ``short`` …"""
    kind: Literal["timeseries", "stat", "table", "heatmap"] = "timeseries"
    width: int = 8
    """Columns of 24."""
    height: int = 8
    help: str = ""
    """What a reader should know; shown beside the title."""
    stacked: bool = False


@dataclass(frozen=True)
class Variable:
    """A label that is chosen at the top of the page, one value, several or all."""

    label: str
    of: str
    """The series, with selectors, whose values of ``label`` there are to choose from."""


@dataclass(frozen=True)
class Dashboard:
    """One page. ``rows``: title → panels from left to right."""

    uid: str
    title: str
    variables: tuple[Variable, ...]
    rows: Mapping[str, Sequence[Panel]]


def as_json(dashboard: Dashboard, tag: str) -> Json:
    """What Grafana takes as a file. Pages with the same ``tag`` are linked to one another."""
    numbers, panels, y = count(1), [], 0
    for title, row in dashboard.rows.items():
        panels.append({"id": next(numbers), "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}})  # fmt: skip
        y += 1
        x = tallest = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append({"id": next(numbers), "gridPos": place, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": [tag],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "graphTooltip": 1,  # one cursor for all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [{"title": "FMplex", "type": "dashboards", "tags": [tag], "asDropdown": True, "includeVars": True,
                   "keepTime": True, "icon": "external link", "tooltip": "", "url": "", "targetBlank": False}],
        "templating": {"list": [_source(), *(_variable(each) for each in dashboard.variables)]},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel) -> Json:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "range": not table,
            "instant": table,
            "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        }
        for number, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> Json:
    """How each value is shown."""
    shown: Json = {"unit": panel.unit}
    if panel.unit == "percentunit":
        shown["min"] = 0
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        shown["custom"] = {"lineWidth": 1, "fillOpacity": 25 if panel.stacked else 5, "showPoints": "never",
                           "stacking": stacking}  # fmt: skip
        shown["min"] = 0
    return shown


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        reduced = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
        return {"reduceOptions": reduced, "colorMode": "none", "graphMode": "area", "textMode": "auto"}
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Blues"}}
    return {"showHeader": True}


def _source() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.label,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({variable.of}, {variable.label})",
        "refresh": 2,  # whenever another time is looked at
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
