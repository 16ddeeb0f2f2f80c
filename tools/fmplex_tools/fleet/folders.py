"""Where a fleet keeps on a machine what its servers and its door have there."""

from __future__ import annotations

from pathlib import Path

from fmplex_backend.backbones.source import cache_dir


def fleet_folder(fleet: str) -> Path:
    """Of all of ``fleet`` on this machine: repositories, logs and ports of its servers, and the door's folder."""
    return cache_dir() / "fleets" / fleet


def door_folder(fleet: str) -> Path:
    """Of its door, on the node where it runs: Envoy's files, and whom Prometheus is to scrape."""
    return fleet_folder(fleet) / "door"
