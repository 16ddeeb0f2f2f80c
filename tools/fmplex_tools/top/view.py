"""Figures as tables for the terminal: a header for each physical FM, a row for each vFM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fmplex_tools.top.figures import FmFigures, VfmFigures

BAR = 10
"""Cells of a share's bar."""
LONGEST_NAME = 24
"""Characters of a name that columns are left out for; where there is room, names are whole."""
AROUND = 5
"""Lines of a physical FM that are no vFM: two of header, the table's headings and rule, what was cut."""


@dataclass(frozen=True)
class Column:
    """One column of the table, and what ``--sort`` calls it."""

    key: str
    heading: str
    cell: Callable[[VfmFigures], RenderableType]
    order: Callable[[VfmFigures], float | str]
    """Greatest first, but for text."""
    width: int
    rank: int = 0
    """Columns of higher rank are left out first where the terminal is narrow."""


def _number(value: float) -> str:
    return "·" if not value else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _trouble(value: float) -> Text:
    return Text(_number(value), style="red" if value else "dim")


def _bar(v: VfmFigures) -> Text:
    """The share as a bar, ``│`` where it is entitled to be."""
    filled, mark = round(v.share * BAR), min(BAR - 1, round(v.entitled * BAR))
    cells = ["█" if i < filled else "·" for i in range(BAR)]
    bar = Text("".join(cells), style="cyan")
    if v.entitled:
        cells[mark] = "│"
        bar = Text("".join(cells), style="cyan")
        bar.stylize("bold yellow", mark, mark + 1)
    return bar


def _name(v: VfmFigures) -> Text:
    return Text(f"✗ {v.vfm}", style="bold red") if v.quarantined else Text(v.vfm)


def _slo(v: VfmFigures) -> Text:
    if v.slo_met is None:
        return Text("–", style="dim")
    return Text(f"{v.slo_met:.1%}", style="green" if v.slo_met >= 0.99 else "yellow" if v.slo_met >= 0.9 else "red")


def _known(value: float | None) -> float:
    return -1.0 if value is None else value


COLUMNS: tuple[Column, ...] = (
    Column("name", "vFM", _name, lambda v: v.vfm, 0),
    Column("weight", "weight", lambda v: f"{v.weight:g}", lambda v: v.weight, 6),
    Column("share", "share", lambda v: f"{v.share:.0%}", lambda v: v.share, 5),
    Column("entitled", "entitled", lambda v: f"{v.entitled:.0%}", lambda v: v.entitled, 8, 1),
    Column("", "█ share │ due", _bar, lambda v: v.share, 13, 2),
    Column("rows", "rows/s", lambda v: _number(v.rows_per_s), lambda v: v.rows_per_s, 6),
    Column("requests", "req/s", lambda v: _number(v.requests_per_s), lambda v: v.requests_per_s, 6, 4),
    Column("queue", "queue", lambda v: str(v.queue or "·"), lambda v: v.queue, 5),
    Column("p50", "p50 ms", lambda v: _ms(v.p50_ms), lambda v: _known(v.p50_ms), 6),
    Column("p99", "p99 ms", lambda v: _ms(v.p99_ms), lambda v: _known(v.p99_ms), 6),
    Column("rejected", "rej/s", lambda v: _trouble(v.rejected_per_s), lambda v: v.rejected_per_s, 5),
    Column("expired", "exp/s", lambda v: _trouble(v.expired_per_s), lambda v: v.expired_per_s, 5),
    Column("failed", "fail/s", lambda v: _trouble(v.failed_per_s), lambda v: v.failed_per_s, 6, 3),
    Column("device", "dev ms/s", lambda v: _number(v.device_ms_per_s), lambda v: v.device_ms_per_s, 8, 5),
    Column("slo", "SLO met", _slo, lambda v: -2.0 if v.slo_met is None else -v.slo_met, 7),
)
SORTS: tuple[str, ...] = tuple(column.key for column in COLUMNS if column.key)


def sort_vfms(vfms: Sequence[VfmFigures], key: str) -> list[VfmFigures]:
    """By one of `SORTS`: greatest first (the objective that is met least first), names from A; ties by name."""
    order = next(column.order for column in COLUMNS if column.key == key)
    return sorted(sorted(vfms, key=lambda v: v.vfm), key=order, reverse=key != "name")


def screen(fms: Sequence[FmFigures], sort: str, width: int, height: int | None = None) -> RenderableType:
    """Everything; at most ``height`` lines where it is given, divided evenly among the physical FMs."""
    each = None if height is None else max(1, height // max(1, len(fms)) - AROUND)
    parts: list[RenderableType] = []
    for fm in fms:
        parts += [header(fm), table(fm, sort, width, each)]
        if each is not None and len(fm.vfms) > each:
            parts.append(Text(f"… {len(fm.vfms) - each} more of {len(fm.vfms)} vFMs", style="dim"))
    return Group(*parts)


def header(fm: FmFigures) -> Text:
    """Two lines about a physical FM."""
    parts = [
        f"{fm.engines} engine{'s' if fm.engines != 1 else ''} {fm.busy:.0%} busy",
        f"{_number(fm.rows_per_s)} rows/s",
        f"{fm.queue} waiting",
        f"{len(fm.vfms)} vFMs",
    ]
    batches = [
        f"batch {_of(fm.batch_rows, '.1f')} rows of {_of(fm.batch_vfms, '.1f')} vFMs",
        f"padding {_of(fm.padding, '.0%')}",
        f"decision {_of(fm.decision_us, '.0f')} µs",
        f"cost error {fm.cost_error:.0%}",
    ]
    if quarantined := sum(vfm.quarantined for vfm in fm.vfms):
        parts.append(f"[red]✗ {quarantined} quarantined[/]")
    if fm.engine_deaths:
        batches.append(f"[red]{fm.engine_deaths} died[/]")
    title = f"[bold]{escape(fm.fm)}[/]   "
    return Text.from_markup(title + " · ".join(parts) + "\n  " + " · ".join(batches), overflow="ellipsis")


def _of(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def table(fm: FmFigures, sort: str, width: int, most: int | None = None) -> Table:
    """A row for each vFM, at most ``most``; columns that do not fit into ``width`` are left out."""
    longest = max((len(_name(vfm)) for vfm in fm.vfms), default=3)
    shown = _fitting(width - min(longest, LONGEST_NAME))
    name_width = max(3, min(longest, width - sum(column.width + 1 for column in shown)))
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    for column in shown:
        heading = f"[reverse]{column.heading}[/]" if column.key == sort else column.heading
        justify: Literal["left", "right"] = "left" if column.key in ("", "name") else "right"
        made.add_column(heading, justify=justify, width=column.width or name_width, no_wrap=True, overflow="ellipsis")
    for vfm in sort_vfms(fm.vfms, sort)[:most]:
        idle = not (vfm.rows_per_s or vfm.queue or vfm.rejected_per_s or vfm.expired_per_s or vfm.failed_per_s)
        made.add_row(*(column.cell(vfm) for column in shown), style="dim" if idle else None)
    return made


def _fitting(width: int) -> list[Column]:
    """The columns that fit into ``width`` beside the name."""
    most = max(column.rank for column in COLUMNS)
    for rank in range(most, -1, -1):
        shown = [column for column in COLUMNS if column.rank <= rank]
        if sum(column.width + 1 for column in shown) <= width:
            break
    return shown
