"""Parts that pages share: the frame, tiles, facts, lines, and the table of vFMs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from fmplex_tools.dashboard.placement import Line
from fmplex_tools.dashboard.words import MARKS, NONE, Tone

_HERE = Path(__file__).parent


def add_looks() -> None:
    """Style and scripts, into every page's head: nothing is asked of any other server."""
    ui.add_css((_HERE / "style.css").read_text("utf-8"), shared=True)
    ui.add_head_html(f"<script>{(_HERE / 'cells.js').read_text('utf-8')}</script>", shared=True)


def vfm_path(vfm: str) -> str:
    """Where a vFM's page is."""
    return f"/vfm/{quote(vfm, safe='')}"


def marked(tone: Tone, text: str) -> str:
    """HTML of a state: its mark and its word."""
    return f'<span class="state tone-{tone}"><span class="mark">{MARKS[tone]}</span>{escape(text)}</span>'


class Html:
    """A piece of HTML that is sent only where it has changed. Whoever makes it escapes what is not his."""

    def __init__(self, classes: str = "", marker: str = "") -> None:
        self._element = ui.html("", sanitize=False).classes(classes)
        if marker:
            self._element.props(f'data-test="{marker}"')

    def show(self, html: str) -> None:
        """In place of what was there."""
        if html != self._element.content:
            self._element.set_content(html)


class Tile:
    """A figure to be seen from afar."""

    def __init__(self, what: str, unit: str = "") -> None:
        with ui.element("div").classes("card tile").props(f'data-test="tile {what}"') as self._tile:
            ui.label(what).classes("what")
            self._value = Html("value")
            self._more = ui.label("").classes("more")
        self._unit = unit

    def show(self, value: str, more: str = "", *, trouble: bool = False) -> None:
        """``more``: a few words below; ``trouble``: it wants attention, and ``more`` says so too."""
        unit = f'<span class="unit">{escape(self._unit)}</span>' if self._unit and value != NONE else ""
        self._value.show(escape(value) + unit)
        self._more.set_text(more)
        self._tile.classes(add="trouble") if trouble else self._tile.classes(remove="trouble")


class Facts:
    """Names and figures, a line each."""

    def __init__(self, names: Sequence[str]) -> None:
        with ui.element("div").classes("facts"):
            self._labels = {}
            for name in names:
                ui.label(name).classes("what")
                self._labels[name] = ui.label(NONE).classes("value")

    def show(self, values: Mapping[str, str], trouble: Iterable[str] = ()) -> None:
        """``trouble``: names of figures that want attention."""
        bad = set(trouble)
        for name, label in self._labels.items():
            label.set_text(values.get(name, NONE))
            label.classes(add="tone-bad") if name in bad else label.classes(remove="tone-bad")


def lines_html(lines: Iterable[Line]) -> str:
    """Sentences, each with its mark."""
    return "".join(f'<div class="line">{marked(line.tone, line.text)}</div>' for line in lines)
