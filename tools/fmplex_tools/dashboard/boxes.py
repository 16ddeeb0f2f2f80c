"""The placement as HTML: devices, on them physical FMs, on those vFMs. All that is written in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from fmplex_tools.dashboard.parts import marked, vfm_path
from fmplex_tools.dashboard.placement import Chip, DeviceBox, FmBox, Placement
from fmplex_tools.dashboard.words import MARKS, Tone, gigabytes, percent

MOST_DEVICES = 60
"""Devices that are drawn; those that want attention come first, the rest is counted."""
MOST_ENGINES = 16
_LEGEND: tuple[tuple[Tone, str], ...] = (
    ("good", "serves"),
    ("idle", "idle"),
    ("warn", "changes, or turns requests away"),
    ("bad", "wants attention"),
)


def placement_html(seen: Placement) -> str:
    """The picture with its legend."""
    attention = {"bad": 0, "warn": 1, "good": 2, "idle": 3}
    devices: Iterable[DeviceBox] = seen.devices
    if len(seen.devices) > MOST_DEVICES:
        devices = sorted(seen.devices, key=lambda device: attention[device.tone])[:MOST_DEVICES]
    drawn = "".join(map(_device, devices))
    more = len(seen.devices) - MOST_DEVICES
    rest = f'<div class="small">… and {more:,} more devices</div>' if more > 0 else ""
    legend = "".join(f"<span>{marked(tone, text)}</span>" for tone, text in _LEGEND)
    return f'<div class="picture">{drawn}</div>{rest}<div class="legend">{legend}</div>'


def _device(device: DeviceBox) -> str:
    parts = [
        f'<div class="head"><span class="name">{escape(device.name)}</span>{marked(device.tone, device.state)}</div>',
        f'<div class="where">{escape(device.where)}</div>',
    ]
    if device.memory:
        part = device.used / device.memory
        text = f"memory {gigabytes(device.used)} of {gigabytes(device.memory)} GB"
        parts.append(_meter(part) + f'<div class="small">{text}</div>')
    parts += map(_fm, device.fms)
    if device.loose:
        parts.append(
            f'<div class="small" style="margin-top:8px">not served yet</div>{_chips(device.loose, device.more)}'
        )
    return f'<div class="device" data-test="device {escape(device.name)}">{"".join(parts)}</div>'


def _fm(fm: FmBox) -> str:
    busy = fm.busy or 0.0
    shown = min(fm.engines, MOST_ENGINES)
    # The metrics tell of all engines together: each is drawn as busy as they are on average.
    engines = "".join(f'<div class="engine">engine {number}{_meter(busy)}</div>' for number in range(1, shown + 1))
    more = f'<div class="engine">and {fm.engines - shown} more</div>' if fm.engines > shown else ""
    title = f"on average {percent(fm.busy)} busy"
    return (
        f'<div class="fm-box is-{fm.tone}" data-test="fm {escape(fm.fm)}"><div class="head">'
        f'<span class="name">{escape(fm.fm)}</span>{marked(fm.tone, fm.state)}</div>'
        f'<div class="engines" title="{title}">{engines}{more}</div>{_chips(fm.chips, fm.more)}</div>'
    )


def _chips(chips: tuple[Chip, ...], more: int) -> str:
    made = "".join(
        f'<a class="chip is-{chip.tone}" href="{vfm_path(chip.vfm)}" title="{escape(f"{chip.vfm}: {chip.state}")}">'
        f'<span class="mark tone-{chip.tone}">{MARKS[chip.tone]}</span>'
        f'<span class="text">{escape(_chip_text(chip))}</span></a>'
        for chip in chips
    )
    rest = f'<span class="small">… and {more:,} more</span>' if more else ""
    return f'<div class="chips">{made}{rest}</div>'


def _chip_text(chip: Chip) -> str:
    """What is not as usual is said in words, too."""
    return f"{chip.vfm} · {chip.state.partition(':')[0]}" if chip.tone in ("bad", "warn") else chip.vfm


def _meter(part: float) -> str:
    return f'<div class="meter"><i style="width:{100 * min(1.0, max(0.0, part)):.1f}%"></i></div>'
