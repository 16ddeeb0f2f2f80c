"""The table of vFMs: sorted and filtered in the browser, told only the rows that have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nicegui import ui

from fmplex_tools.dashboard.parts import vfm_path
from fmplex_tools.dashboard.view import VfmRow
from fmplex_tools.dashboard.words import MARKS

_ROW, _HEAD = 32, 36
_MOST_ROWS = 16
"""Rows that are seen at once; the rest is scrolled to."""
_NAME_WIDTH = ":width=window.innerWidth > 640 ? 200 : 150"
Cells = dict[str, Any]


class VfmTable:
    """Of all vFMs, a row for each on each server."""

    def __init__(self, rows: Sequence[VfmRow]) -> None:
        self._sent = {row.id: cells(row) for row in rows}
        self._visible: dict[str, bool] = {}
        with ui.element("div").classes("card"):
            with ui.element("div").classes("table-head"):
                ui.label("vFMs").classes("name")
                self._count = ui.label("").classes("of")
                search = ui.input(placeholder="find a vFM").props("dense outlined clearable aria-label='find a vFM'")
                search.classes("search").on_value_change(lambda event: self._find(event.value))
            self._grid = ui.aggrid(_options(list(self._sent.values())), theme="quartz", auto_size_columns=False)
            self._grid.classes("grid").props('data-test="vfms"')
        self._resize()

    def update(self, rows: Iterable[VfmRow]) -> None:
        """What there is now."""
        now = {row.id: cells(row) for row in rows}
        if change := changes(self._sent, now):
            self._grid.run_grid_method("applyTransaction", change)
            self._sent = now
            self._resize()

    def _resize(self) -> None:
        servers = len({row["server"] for row in self._sent.values()})
        fms = len({row["fm"] for row in self._sent.values()})
        names = len({row["vfm"] for row in self._sent.values()})
        self._count.set_text(f"{names:,} · a click opens one")
        height = _HEAD + _ROW * min(_MOST_ROWS, max(3, len(self._sent))) + 16
        self._grid.style(f"height: {height}px")
        for column, shown in (("server", servers > 1), ("fm", fms > 1)):
            if self._visible.get(column) != shown:
                self._visible[column] = shown
                self._grid.run_grid_method("setColumnsVisible", [column], shown)

    def _find(self, text: str | None) -> None:
        self._grid.run_grid_method("setGridOption", "quickFilterText", text or "")


def cells(row: VfmRow) -> Cells:
    """What the browser is told of a row; None is shown as a dash."""
    made: Cells = {
        "id": row.id,
        "vfm": row.vfm,
        "href": vfm_path(row.vfm),
        "state": row.state,
        "order": row.rank,
        "mark": MARKS[row.tone],
        "tone": row.tone,
        "server": row.server,
        "fm": row.fm,
        "weight": row.weight,
    }
    for field in (
        *("share", "entitled", "p50_ms", "p99_ms", "rows_per_s", "queue"),
        *("rejected_per_s", "expired_per_s", "failed_per_s", "slo_met"),
    ):
        value = getattr(row.figures, field) if row.figures is not None else None
        made[field] = round(value, 4) if value is not None else None
    return made


def changes(before: Mapping[str, Cells], now: Mapping[str, Cells]) -> dict[str, list[Cells]]:
    """As AG Grid's transactions want it; empty where nothing has changed."""
    found = {
        "add": [row for key, row in now.items() if key not in before],
        "update": [row for key, row in now.items() if key in before and before[key] != row],
        "remove": [{"id": key} for key in before if key not in now],
    }
    return {what: rows for what, rows in found.items() if rows}


def _options(rows: list[Cells]) -> dict[str, Any]:
    return {
        "columnDefs": [
            _text("vFM", "vfm", ":cellRenderer=fmplex.name", _NAME_WIDTH, pinned="left"),
            _text("state", "state", ":cellRenderer=fmplex.state", ":comparator=fmplex.byState", width=118, sort="asc"),
            _text("on", "server", headerClass="slim", width=88, hide=True),
            _text("FM", "fm", headerClass="slim", width=92, hide=True),
            _number(
                "share, entitled",
                "share",
                ":cellRenderer=fmplex.share",
                type=None,
                headerClass="slim",
                flex=5,
                minWidth=140,
            ),
            _number("weight", "weight"),
            _number("rows/s", "rows_per_s"),
            _number("p50 ms", "p50_ms"),
            _number("p99 ms", "p99_ms"),
            _number("queue", "queue"),
            _number("rejected/s", "rejected_per_s", ":cellClass=fmplex.trouble", minWidth=88),
            _number("expired/s", "expired_per_s", ":cellClass=fmplex.trouble", minWidth=84),
            _number("failed/s", "failed_per_s", ":cellClass=fmplex.trouble", minWidth=76),
            _number("SLO met", "slo_met", ":valueFormatter=fmplex.percent", ":cellClass=fmplex.met", minWidth=78),
        ],
        "defaultColDef": {"resizable": True, "suppressHeaderMenuButton": True, "suppressMovable": True},
        "rowData": rows,
        ":getRowId": "(row) => row.data.id",
        ":onRowClicked": "fmplex.open",
        "rowHeight": _ROW,
        "headerHeight": _HEAD,
        "animateRows": False,
        "ensureDomOrder": True,
        "suppressCellFocus": True,
        "overlayNoRowsTemplate": "no vFM is served, or none is called like that",
    }


def _text(heading: str, field: str, *scripts: str, **more: Any) -> dict[str, Any]:
    """A column; ``scripts``: ``:OPTION=NAME`` of cells.js."""
    made = {"headerName": heading, "field": field, "filter": "agTextColumnFilter", **more}
    return made | dict(script.split("=", 1) for script in scripts)


def _number(heading: str, field: str, *scripts: str, **more: Any) -> dict[str, Any]:
    made = {
        "filter": "agNumberColumnFilter",
        "headerClass": ["slim", "ag-right-aligned-header"],
        "type": "rightAligned",
        ":valueFormatter": "fmplex.number",
        "flex": 2,
        "minWidth": 66,
    }
    return made | _text(heading, field, *scripts, **{"filter": made["filter"], **more})
