"""The page as a web server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nicegui import app, ui

from fmplex_tools.dashboard.page import Overview
from fmplex_tools.dashboard.parts import add_looks
from fmplex_tools.dashboard.vfm_page import VfmPage
from fmplex_tools.dashboard.watch import Watch

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072b2"/>'
    '<path d="M3 12V8h2v4zm4 0V4h2v8zm4 0V6h2v6z" fill="#fff"/></svg>'
)
_RECONNECT = 30.0
"""Seconds that a browser may be away and go on with its page; after that it loads it anew, by itself."""


def serve_page(watch: Watch, host: str, port: int, started: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM. ``started`` is called when it listens."""
    add_looks()

    @ui.page("/", title="FMplex")
    def overview() -> None:
        _keep(watch, Overview(watch))

    @ui.page("/vfm/{vfm:path}", title="FMplex: vFM")
    def one_vfm(vfm: str) -> None:
        ui.page_title(f"FMplex: {vfm}")
        _keep(watch, VfmPage(watch, vfm))

    app.on_startup(started)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it once more when it has ended in order
        ui.run(
            host=host,
            port=port,
            title="FMplex",
            favicon=_ICON,
            dark=None,
            tailwind=False,
            reload=False,
            show=False,
            show_welcome_message=False,
            reconnect_timeout=_RECONNECT,
            uvicorn_logging_level="warning",
            timeout_graceful_shutdown=2,
        )


def _keep(watch: Watch, page: Overview | VfmPage) -> None:
    """Bring it up to date as often as something new is looked for."""
    ui.timer(watch.interval, lambda: page.update(watch.snapshot()))
