"""The page of everything: headline, physical FMs, where they are, vFMs."""

from __future__ import annotations

from nicegui import ui

from fmplex_tools.dashboard.boxes import placement_html
from fmplex_tools.dashboard.charts import Chart, Shown
from fmplex_tools.dashboard.parts import Facts, Html, Tile, lines_html, marked
from fmplex_tools.dashboard.placement import placement
from fmplex_tools.dashboard.table import VfmTable
from fmplex_tools.dashboard.view import FmView, Headline, ServerView, Snapshot, headline, rows
from fmplex_tools.dashboard.watch import Watch
from fmplex_tools.dashboard.words import NONE, count, number, percent, since

MOST_CARDS = 12
"""Physical FMs with a chart of their own; more are in the picture and the table."""
_FACTS = (
    "busy",
    "waiting",
    "rows a batch",
    "vFMs a batch",
    "padding",
    "decision",
    "cost error",
    "engine deaths",
    "lost batches",
)


class Frame:
    """What every page has at its top, and what keeps it going."""

    def __init__(self, watch: Watch, *, back: bool = False) -> None:
        self._watch = watch
        with ui.element("div").classes("bar"):
            ui.link("FMplex", "/").classes("title")
            self._of = ui.label("").classes("of")
            if back:
                ui.link("← all vFMs", "/").classes("back")
            self._told = Html("told", "told")

    def show(self, seen: Snapshot) -> None:
        """Whose figures these are, and whether they are of now."""
        self._of.set_text(subject(seen))
        self._told.show(freshness(seen, self._watch.interval))


def subject(seen: Snapshot) -> str:
    """What is looked at."""
    if seen.fleet is not None:
        return f"fleet {seen.fleet.name} · {count(len(seen.servers), 'server')}"
    return ", ".join(server.name for server in seen.servers)


def freshness(seen: Snapshot, interval: float) -> str:
    """HTML: whether all answer."""
    silent = [server for server in seen.servers if server.silent or any(fm.silent for fm in server.fms)]
    if seen.fleet is not None and seen.fleet.silent is not None:
        return marked("bad", f"the controller does not answer {since(seen.fleet.silent.since, seen.at)}")
    if silent:
        first = silent[0]
        then = min(each.since for each in (first.silent, *(fm.silent for fm in first.fms)) if each)
        if len(seen.servers) == 1:
            return marked("bad", f"no answer {since(then, seen.at)}")
        return marked("bad", f"{len(silent)} of {count(len(seen.servers), 'server')} without an answer")
    return marked("good", f"live, every {number(interval)} s")


class Overview:
    """The page; `update` brings it to a snapshot."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        seen = watch.snapshot()
        self._cards: dict[tuple[str, str], FmCard] = {}
        with ui.element("div").classes("page"):
            self._frame = Frame(watch)
            with ui.element("div").classes("tiles"):
                self._tiles = Tiles()
            self._lines = Html("lines", "lines")
            with ui.element("div").classes("halves") as self._halves:
                self._fms = ui.element("div").classes("stack")
                self._picture = Html(marker="placement")
            self._table = VfmTable(rows(seen.servers))
        self.update(seen)

    def update(self, seen: Snapshot) -> None:
        """Show ``seen``."""
        self._frame.show(seen)
        self._tiles.show(headline(seen.servers))
        picture = placement(seen)
        lines = lines_html(picture.lines)
        self._lines.show(f'<div class="card">{lines}</div>' if lines else "")
        self._picture.show(placement_html(picture))
        self._show_fms(seen)
        self._table.update(rows(seen.servers))

    def _show_fms(self, seen: Snapshot) -> None:
        found = {(server.name, fm.figures.fm): (server, fm) for server in seen.servers for fm in server.fms}
        shown = dict(list(found.items())[:MOST_CARDS])
        if self._cards.keys() != shown.keys() or not shown:
            self._cards = {}
            self._halves.classes(add="many") if len(shown) > 1 else self._halves.classes(remove="many")
            self._fms.clear()
            with self._fms:
                for server, fm in shown.values():
                    self._cards[server.name, fm.figures.fm] = FmCard(server, fm, len(seen.servers) > 1)
                if len(found) > MOST_CARDS:
                    ui.label(f"… and {len(found) - MOST_CARDS} more physical FMs").classes("small")
                if not found:
                    ui.label("no physical FM has told anything yet").classes("card small")
        for (server_name, name), (_, fm) in shown.items():
            self._cards[server_name, name].show(fm, seen.at, self._watch)


class Tiles:
    """The headline."""

    def __init__(self) -> None:
        self._rows, self._requests = Tile("rows", "/s"), Tile("requests", "/s")
        self._p99, self._errors = Tile("worst p99", "ms"), Tile("errors", "/s")
        self._queue, self._busy = Tile("waiting", "rows"), Tile("engines busy")

    def show(self, sums: Headline) -> None:
        """See `Headline`."""
        known = sums.rows_per_s is not None
        self._rows.show(number(sums.rows_per_s), f"{sums.active:,} of {count(sums.vfms, 'vFM')} busy" if known else "")
        self._requests.show(number(sums.requests_per_s))
        self._p99.show(number(sums.worst_p99_ms), sums.worst_vfm)
        failing = bool(sums.errors_per_s)
        self._errors.show(number(sums.errors_per_s), "rejected, expired or failed" if failing else "", trouble=failing)
        self._queue.show(number(sums.queue), f"{number(sums.running)} in batches" if known else "")
        self._busy.show(percent(sums.busy), f"{count(sums.engines, 'engine')}" if known else "")


class FmCard:
    """One physical FM: its figures and its rows over the last minutes."""

    def __init__(self, server: ServerView, fm: FmView, several: bool) -> None:
        self._server, self._fm = server.name, fm.figures.fm
        with ui.element("div").classes("card fm").props(f'data-test="card {self._fm}"'):
            with ui.element("div").classes("head"):
                ui.label(self._fm).classes("name")
                self._of = ui.label("").classes("of")
                self._state = Html()
            self._facts = Facts(_FACTS)
            self._chart = Chart("rows/s", [Shown("rows_per_s", "rows/s")])
        self._where = f"on {server.name} · " if several else ""

    def show(self, fm: FmView, now: float, watch: Watch) -> None:
        """Its state, and its history up to ``now``."""
        figures, measured = fm.figures, fm.measured
        rate = f" · {number(measured.rows_per_s)} rows/s" if measured else ""
        self._of.set_text(f"{self._where}{count(figures.engines, 'engine')} · {count(len(figures.vfms), 'vFM')}{rate}")
        self._state.show(marked("bad", f"silent {since(fm.silent.since, now)}") if fm.silent else "")
        deaths = [
            name for name, died in zip(_FACTS[-2:], (figures.engine_deaths, figures.lost_batches), strict=True) if died
        ]
        self._facts.show(
            {
                "busy": percent(measured.busy if measured else None),
                "waiting": number(measured.queue if measured else None),
                "rows a batch": number(measured.batch_rows if measured else None),
                "vFMs a batch": number(measured.batch_vfms if measured else None),
                "padding": percent(measured.padding if measured else None),
                "decision": f"{measured.decision_us:.0f} µs" if measured and measured.decision_us else NONE,
                "cost error": percent(measured.cost_error if measured else None),
                "engine deaths": number(figures.engine_deaths),
                "lost batches": number(figures.lost_batches),
            },
            deaths,
        )
        self._chart.update(watch.history(self._server, self._fm))
