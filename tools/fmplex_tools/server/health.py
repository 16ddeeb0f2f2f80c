"""Whether a server answers: a row all the way through the engine, for every physical FM.

The supervisor's looks (`fmplex_tools.server.watch`) leave the engine to the host, which watches it; here nobody is
believed but an answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fmplex_backend.errors import FMplexError, Unavailable
from fmplex_client import Client, FMplexClientError
from fmplex_client.errors import InvalidRequest, ServerError, UnknownTask
from fmplex_client.retry import Deadline
from fmplex_tools.server.watch import silences

TEXT = "healthy?"
STEPS, RATE = 32, 16_000
"""Of the series and the sounds that are sent: steps, and samples a second."""
TRIES = 3
"""vFMs of a physical FM that are asked before it counts as dead: one may fail by its own weights."""
_AT_A_TIME = 16


@dataclass(frozen=True)
class Health:
    """What came of asking one physical FM, or a vFM that was named."""

    fm: str | None
    """None where a vFM was named, or nothing was found to ask."""
    vfm: str | None
    """The one that was asked last; None where there was none to ask."""
    seconds: float
    """Until it was known."""
    error: str | None = None
    """Why it is not healthy."""


def examine(client: Client, metrics: str, vfms: Sequence[str], timeout: float, *, token: bool) -> list[Health]:
    """Ask each of ``vfms``, or where none is named, a vFM of every physical FM that tells metrics at ``metrics``.

    All at the same time, within about ``timeout`` seconds in all. ``token``: whether ``client`` has one.
    """
    begun, deadline = time.monotonic(), Deadline(timeout)
    silent: dict[str, str | None] = {}
    if not vfms:
        try:
            silent = silences(metrics, timeout)
        except FMplexError as error:
            return [Health(None, None, time.monotonic() - begun, str(error))]

    def timed(fm: str | None, look: Callable[[], str | None], named: str | None) -> Health:
        vfm, reason = named, None
        try:
            vfm = look()
        except (FMplexClientError, FMplexError) as error:
            reason = str(error)
        return Health(fm, vfm, time.monotonic() - begun, reason)

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        looks = [pool.submit(timed, None, partial(_ask, client, vfm, deadline), vfm) for vfm in vfms]
        looks += [
            pool.submit(timed, fm, partial(_ask_any, client, fm, silence, deadline, token), None)
            for fm, silence in silent.items()
        ]
        return [look.result() for look in looks]


def row_for(inputs: Sequence[str], channels: int = 1) -> Any:
    """A small row that a task with these inputs reads, see `fmplex_client.rows`; a series of so many ``channels``."""
    wave = np.sin(np.arange(RATE // 2, dtype=np.float32) / 7)
    seen = np.full((32, 32, 3), 128, np.uint8) if {"image", "pixels"} & set(inputs) else None
    if seen is not None:
        return (seen, TEXT) if "text" in inputs else seen
    if "audio" in inputs:
        return wave, RATE
    if "series" in inputs:
        return np.tile(wave[:STEPS], (channels, 1))
    return TEXT


def _ask(client: Client, vfm: str, deadline: Deadline, channels: int = 1) -> str:
    """Raises `FMplexClientError`."""
    task = client.task(vfm, deadline.remaining())
    pairs = [TEXT] if task.takes_pairs else None
    client.predict(vfm, [row_for(task.inputs, channels)], text_pairs=pairs, timeout=deadline.remaining())
    return vfm


def _ask_any(client: Client, fm: str, silence: str | None, deadline: Deadline, token: bool) -> str | None:
    """The vFM that has answered; None where ``fm`` has none. Raises `FMplexClientError` and `Unavailable`."""
    if silence is not None:
        raise Unavailable(silence)
    records = [vfm for vfm in client.status(fm, deadline.remaining())["vfms"] if not vfm["bundle"]]
    if not records:
        return None
    if not (serving := [vfm for vfm in records if vfm["state"] == "serving"]):
        states = ", ".join(f"{vfm['name']!r} is {vfm['state']}" for vfm in records[:TRIES])
        raise Unavailable(f"physical FM {fm!r} serves none of its {len(records)} vFMs: {states}")
    if not (open_ones := [vfm for vfm in serving if token or vfm["access"] == "anybody"]):
        raise Unavailable(f"physical FM {fm!r}: all its vFMs answer only to tokens; give one, or name a vFM")
    told = []
    for vfm in sorted(open_ones, key=_reluctance)[:TRIES]:
        try:
            return _ask(client, vfm["name"], deadline, vfm.get("channels") or 1)
        except (ServerError, UnknownTask, InvalidRequest) as error:
            told.append(str(error))
    raise Unavailable("; ".join(told))


def _reluctance(vfm: dict[str, Any]) -> tuple[bool, int]:
    """The least first: those that will not refuse a row for being asked too often, with few rows that wait."""
    return bool(vfm["policy"]["rate_limit_rows_per_second"]), vfm["waiting"]
