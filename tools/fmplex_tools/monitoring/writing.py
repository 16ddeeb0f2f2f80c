"""A folder that Prometheus and Grafana start from: whom to scrape, rules, alerts, data source, dashboards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from fmplex_backend.errors import InvalidInput
from fmplex_tools.files import write_whole
from fmplex_tools.monitoring.dashboards import DASHBOARDS
from fmplex_tools.monitoring.grafana import Json, as_json
from fmplex_tools.monitoring.targets import targets_file

CONFIG = Path("prometheus/prometheus.yml")
PROVISIONING = Path("grafana/provisioning")
PAGES = Path("grafana/dashboards")
SINGLE = "single"
"""What stands for the fleet of a server that is in none."""
RUNBOOK = "docs/operations.md#alerts"
RESCAN = "30s"
"""How often Prometheus looks for a fleet's file where it cannot watch it, since its folder is not there yet."""
DOOR_STATISTICS = "|".join(
    (
        r"^http\.door\.downstream_rq_(time|xx|[2-5]xx)",
        r"^vhost\.fmplex\.route\..*\.upstream_rq_(completed|retry|time)$",
        r"^cluster\.(http|grpc)/.*\.membership_(healthy|total)$",
    )
)
"""Names of Envoy's statistics that `rules.yml` reads: all of them are several hundred for each set of servers."""
_FLEET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Wanted:
    """What to watch, and how."""

    metrics: tuple[str, ...] = ()
    """``HOST:PORT`` of single servers' metrics."""
    fleets: tuple[str, ...] = ()
    """Names of fleets whose door runs on this machine."""
    prometheus: str = "http://127.0.0.1:9090"
    """Where Grafana finds Prometheus."""
    alertmanagers: tuple[str, ...] = ()
    """``HOST:PORT`` of those that alerts are sent to."""
    interval: int = 10
    """Seconds between two scrapes. Rates are of a minute, so a quarter of it at most."""
    runbook: str = RUNBOOK
    """Where the alerts' runbook is."""

    def __post_init__(self) -> None:
        if not self.metrics and not self.fleets:
            raise InvalidInput("nothing to watch: name a server's metrics (HOST:PORT) or a fleet")
        for address in (*self.metrics, *self.alertmanagers):
            check_address(address)
        for fleet in self.fleets:
            if not _FLEET.fullmatch(fleet):
                raise InvalidInput(f"fleet {fleet!r}: give its name, 'run.name' of its fleet file, e.g. fleet")
        if urlsplit(self.prometheus).scheme not in ("http", "https") or not urlsplit(self.prometheus).netloc:
            raise InvalidInput(f"Prometheus at {self.prometheus!r}: give a URL, e.g. http://127.0.0.1:9090")


def check_address(address: str) -> None:
    """Raises `InvalidInput` where it is not ``HOST:PORT``."""
    try:
        parts = urlsplit(f"//{address}")
        good = bool(parts.hostname) and parts.port is not None and parts.netloc == address and "@" not in address
    except ValueError:
        good = False
    if not good or re.search(r"\s", address):
        raise InvalidInput(f"address {address!r}: give HOST:PORT, e.g. 127.0.0.1:8002")


def write(folder: Path, wanted: Wanted) -> list[Path]:
    """Put all files into ``folder``, each whole; what they are. Raises `InvalidInput` where it is no folder."""
    folder = folder.resolve()
    made = dict(contents(folder, wanted))
    try:
        for name, text in made.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, text)
    except OSError as error:
        raise InvalidInput(f"{folder}: cannot be written to ({error}); name a folder of your own") from None
    return [folder / name for name in made]


def contents(folder: Path, wanted: Wanted) -> Iterator[tuple[Path, str]]:
    """Name and text of each file. ``folder`` is where they will be: Grafana wants to know."""
    package = files("fmplex_tools.monitoring")
    yield CONFIG, _yaml(prometheus_config(wanted))
    yield CONFIG.with_name("rules.yml"), package.joinpath("rules.yml").read_text("utf-8")
    alerts = package.joinpath("alerts.yml").read_text("utf-8")
    yield CONFIG.with_name("alerts.yml"), alerts.replace("RUNBOOK", json.dumps(wanted.runbook))
    source = {"name": "FMplex", "uid": "fmplex-prometheus", "type": "prometheus", "access": "proxy", "isDefault": True,
              "url": wanted.prometheus, "jsonData": {"timeInterval": f"{wanted.interval}s"}}  # fmt: skip
    yield PROVISIONING / "datasources/fmplex.yml", _yaml({"apiVersion": 1, "datasources": [source]})
    provider = {"name": "FMplex", "folder": "FMplex", "type": "file", "options": {"path": str(folder / PAGES)}}
    yield PROVISIONING / "dashboards/fmplex.yml", _yaml({"apiVersion": 1, "providers": [provider]})
    for dashboard in DASHBOARDS:
        yield PAGES / f"{dashboard.uid}.json", json.dumps(as_json(dashboard, "fmplex"), indent=1) + "\n"


def prometheus_config(wanted: Wanted) -> Json:
    """Jobs ``fmplex``, of tritonservers, and for fleets ``fmplex-door``, of Envoys."""
    every = f"{wanted.interval}s"
    servers: Json = {"job_name": "fmplex"}
    jobs = [servers]
    if wanted.metrics:
        servers["static_configs"] = [
            {"targets": [address], "labels": {"fleet": SINGLE, "node": urlsplit(f"//{address}").hostname,
                                              "device": address}}
            for address in wanted.metrics
        ]  # fmt: skip
    if wanted.fleets:
        found = {"file_sd_configs": [{"files": [str(targets_file(name)) for name in wanted.fleets],
                                      "refresh_interval": RESCAN}]}  # fmt: skip
        has_device = {"source_labels": ["device"], "regex": ".+"}  # what has none is a door
        servers |= found | {"relabel_configs": [has_device | {"action": "keep"}]}
        door = {"job_name": "fmplex-door", "metrics_path": "/stats/prometheus",
                "params": {"usedonly": [""], "filter": [DOOR_STATISTICS]}}  # fmt: skip
        jobs.append(door | found | {"relabel_configs": [has_device | {"action": "drop"}]})
    config: Json = {
        "global": {"scrape_interval": every, "evaluation_interval": every, "scrape_timeout": every},
        "rule_files": ["rules.yml", "alerts.yml"],
        "scrape_configs": jobs,
    }
    if wanted.alertmanagers:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": list(wanted.alertmanagers)}]}]}
    return config


def _yaml(content: Json) -> str:
    told = "# Written by `fmplex monitoring write`, which writes it anew each time.\n"
    apart = json.loads(json.dumps(content))  # what occurs twice is written twice, and not as a reference
    return told + str(yaml.safe_dump(apart, sort_keys=False, width=200))
