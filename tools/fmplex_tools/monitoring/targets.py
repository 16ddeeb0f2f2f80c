"""Whom Prometheus is to scrape in a fleet: a file that it watches, replaced whole whenever servers come, go or move.

Its form is that of ``file_sd_configs``. Every server has the labels ``fleet``, ``node`` and ``device``; the door, which
is Envoy's admin port, has ``fleet`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fmplex_tools.files import write_whole
from fmplex_tools.fleet.folders import door_folder

TARGETS = "targets.json"
"""The file's name, in the folder of the door."""


def targets_file(fleet: str) -> Path:
    """Where the door of ``fleet`` keeps it, on the node where it runs."""
    return door_folder(fleet) / TARGETS


@dataclass(frozen=True)
class Target:
    """The metrics of one device's server."""

    device: str
    node: str
    address: str
    """``HOST:PORT`` of tritonserver's metrics."""


def write_targets(folder: Path, fleet: str, targets: Iterable[Target], door: str | None) -> None:
    """Put all ``targets`` into `TARGETS` of ``folder``; ``door`` is ``HOST:PORT`` of Envoy's admin port, if it runs.

    A file that says the same already is left alone, so that Prometheus has nothing to read again.
    """
    groups = [
        {"targets": [each.address], "labels": {"fleet": fleet, "node": each.node, "device": each.device}}
        for each in sorted(targets, key=lambda each: each.device)
    ]
    if door is not None:
        groups.append({"targets": [door], "labels": {"fleet": fleet}})
    path, text = folder / TARGETS, json.dumps(groups, indent=1) + "\n"
    if not path.is_file() or path.read_text("utf-8") != text:
        write_whole(path, text)
