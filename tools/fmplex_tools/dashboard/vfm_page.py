"""The page of one vFM: on every server that has it, its figures and its last minutes."""

from __future__ import annotations

from html import escape

from nicegui import ui

from fmplex_tools.dashboard.charts import Chart, Shown
from fmplex_tools.dashboard.page import Frame
from fmplex_tools.dashboard.parts import Html, Tile, lines_html, marked
from fmplex_tools.dashboard.placement import Line
from fmplex_tools.dashboard.view import Snapshot, VfmRow, errors_per_s, rows
from fmplex_tools.dashboard.watch import Watch
from fmplex_tools.dashboard.words import few, number, percent


class VfmPage:
    """See the module; `update` brings it to a snapshot."""

    def __init__(self, watch: Watch, vfm: str) -> None:
        self._watch, self._vfm = watch, vfm
        self._parts: dict[str, VfmPart] = {}
        with ui.element("div").classes("page"):
            self._frame = Frame(watch, back=True)
            with ui.element("div").classes("bar name"):
                ui.label(vfm).classes("title").props('data-test="vfm"')
            self._lines = Html("lines", "lines")
            self._body = ui.element("div")
        self.update(watch.snapshot())

    def update(self, seen: Snapshot) -> None:
        """Show ``seen``. A vFM that is gone keeps what was shown of it, and the page says so."""
        self._frame.show(seen)
        every = rows(seen.servers)
        own = sorted((row for row in every if row.vfm == self._vfm), key=lambda row: row.id)
        self._lines.show("" if own else self._missing(every))
        if own and [row.id for row in own] != list(self._parts):
            self._body.clear()
            with self._body:
                self._parts = {row.id: VfmPart(row) for row in own}
        for row in own:
            self._parts[row.id].show(row, self._watch)

    def _missing(self, every: list[VfmRow]) -> str:
        names = sorted({row.vfm for row in every})
        there = f"there are {few(names)}" if names else "there is none at all"
        line = Line("bad", f"no vFM {self._vfm!r} is served: {there}. The page goes on looking.")
        return f'<div class="card">{lines_html([line])}</div>'


class VfmPart:
    """One vFM on one server."""

    def __init__(self, row: VfmRow) -> None:
        self._head = Html("", "where")
        with ui.element("div").classes("tiles"):
            self._share = Tile("share")
            self._rows, self._p50, self._p99 = Tile("rows", "/s"), Tile("p50", "ms"), Tile("p99", "ms")
            self._queue, self._errors, self._slo = Tile("waiting", "rows"), Tile("errors", "/s"), Tile("SLO met")
        slo_ms = row.figures.slo_ms if row.figures else None
        with ui.element("div").classes("charts"):
            self._charts = []
            for title, lines, limit, top in (
                ("latency, ms", [Shown("p99_ms", "p99"), Shown("p50_ms", "p50")], slo_ms, None),
                (
                    "share of the device, %",
                    [Shown("share", "share", 100), Shown("entitled", "entitled", 100)],
                    None,
                    100,
                ),
                ("rows in the queue", [Shown("queue", "waiting"), Shown("running", "running")], None, None),
                ("requests not served, /s", _ERRORS, None, None),
            ):
                with ui.element("div").classes("card"):
                    self._charts.append(Chart(title, lines, limit=limit, top=top))

    def show(self, row: VfmRow, watch: Watch) -> None:
        """Its figures, and its history."""
        state = marked(row.tone, row.state)
        self._head.show(f'<h2 class="on">{state} <span class="quiet">{_where(row)}</span></h2>')
        seen = row.figures
        errors = errors_per_s(seen) if seen else None
        self._share.show(
            percent(seen.share if seen else None), f"entitled to {percent(seen.entitled if seen else None)}"
        )
        self._rows.show(number(seen.rows_per_s if seen else None), f"weight {row.weight:g}")
        self._p50.show(number(seen.p50_ms if seen else None))
        objective = f"objective {number(seen.slo_ms)} ms" if seen and seen.slo_ms else "no objective"
        self._p99.show(number(seen.p99_ms if seen else None), objective)
        self._queue.show(number(seen.queue if seen else None), f"{seen.running} in batches" if seen else "")
        self._errors.show(number(errors), "rejected, expired or failed" if errors else "", trouble=bool(errors))
        self._slo.show(percent(seen.slo_met if seen else None))
        history = watch.history(row.server, row.fm, row.vfm)
        for chart in self._charts:
            chart.update(history)


_ERRORS = [
    Shown("rejected_per_s", "rejected"),
    Shown("expired_per_s", "expired"),
    Shown("failed_per_s", "failed"),
]


def _where(row: VfmRow) -> str:
    return escape(f"on {row.server} · physical FM {row.fm}")
