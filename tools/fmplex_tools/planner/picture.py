"""A plan drawn: how full every device is, of which FMs' vFMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmplex_backend.errors import InvalidInput
from fmplex_tools.planner.packing import Packing

SINGLE = 64
"""Devices up to which each has a bar of its own."""
FORMATS = (".png", ".svg", ".pdf")


def draw(packing: Packing, path: Path) -> None:
    """Into ``path``, a ``.png``, ``.svg`` or ``.pdf``. Raises `InvalidInput`."""
    if path.suffix.lower() not in FORMATS:
        raise InvalidInput(f"picture {path}: write it as one of {', '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    used = [device for device in range(packing.problem.devices) if packing.on[device]]
    height = 2.0 + 0.28 * len(used) if len(used) <= SINGLE else 4.5
    figure, panels = pyplot.subplots(1, 2, figsize=(10, height), layout="constrained", sharey=len(used) <= SINGLE)
    if len(used) <= SINGLE:
        _bars(packing, used, panels)
    else:
        _curves(packing, used, panels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _bars(packing: Packing, used: list[int], panels: Any) -> None:
    """A bar for each device: its memory and its time, in parts of what each FM and its vFMs take."""
    from matplotlib import pyplot

    problem = packing.problem
    colors = pyplot.get_cmap("tab10")
    places = range(len(used))
    starts = {title: [0.0] * len(used) for title in ("memory", "time")}
    for number, fm in enumerate(problem.fms):
        taken = [_taken(packing, device, number) for device in used]
        if not any(memory or time for memory, time in taken):
            continue
        for panel, title, part in zip(panels, starts, zip(*taken, strict=True), strict=True):
            panel.barh(places, part, left=starts[title], color=colors(number % 10), label=fm.name)
            starts[title] = [start + width for start, width in zip(starts[title], part, strict=True)]
    for panel, title in zip(panels, starts, strict=True):
        panel.set(title=f"{title} taken", xlim=(0, 1.0))
        panel.axvline(1.0, color="0.6", lw=0.8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(list(places), [problem.device_names[device] for device in used])
    panels[0].invert_yaxis()
    for place, device in zip(places, used, strict=True):
        panels[1].text(1.01, place, f"{packing.vfms_on(device):,} vFMs", va="center", fontsize=8)
    handles = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)


def _taken(packing: Packing, device: int, fm: int) -> tuple[float, float]:
    """Parts of a device's memory and time that one FM takes, with its vFMs."""
    problem = packing.problem
    kind = problem.kind_of[device]
    own = [problem.demands[piece.demand] for piece in packing.on[device] if problem.demands[piece.demand].fm == fm]
    if not own:
        return 0.0, 0.0
    ceiling = min(problem.demands[piece.demand].asked[kind].ceiling for piece in packing.on[device])
    memory = problem.fms[fm].memory + sum(demand.memory for demand in own)
    rounds = problem.fms[fm].alpha[kind] + sum(demand.asked[kind].spread for demand in own)
    time = sum(demand.asked[kind].work for demand in own) + rounds / ceiling
    return memory / problem.kinds[kind].memory, time


def _curves(packing: Packing, used: list[int], panels: Any) -> None:
    """How full devices are, the fullest first, and how many vFMs they have."""
    full = [packing.fullness(device) for device in used]
    for name in full[0]:
        panels[0].plot(sorted((one[name] for one in full), reverse=True), label=name)
    panels[0].set(title="part taken, fullest first", xlabel="devices", ylim=(0, 1.02))
    panels[0].legend()
    panels[1].hist([packing.vfms_on(device) for device in used], bins=40)
    panels[1].set(title="vFMs on a device", xlabel="vFMs", ylabel="devices")
    for panel in panels:
        panel.grid(alpha=0.3)
