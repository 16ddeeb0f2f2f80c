"""What a running server says of itself: the status of its physical FMs, as tables for people."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fmplex_backend.errors import Refused, Unavailable
from fmplex_backend.repository.config import CONFIG_FILE, read_config
from fmplex_backend.repository.layout import model_dirs, physical_fms
from fmplex_backend.repository.sockets import STATUS_OUTPUT


def fetch_status(http: str, fm: str, timeout: float = 10.0) -> dict[str, Any]:
    """The status of physical FM ``fm`` behind ``http`` (host:port). Raises `Unavailable`."""
    ask = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["status"]}],
        "outputs": [{"name": STATUS_OUTPUT}],
    }
    url = f"http://{http}/v2/models/{fm}/infer"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(ask).encode()), timeout=timeout) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            told = error.read().decode(errors="replace")
        raise Unavailable(f"physical FM {fm!r} at {http} does not tell its status: HTTP {error.code}: {told}") from None
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"physical FM {fm!r} at {http} does not tell its status: {error}") from None
    status: dict[str, Any] = json.loads(body["outputs"][0]["data"][0])
    return status


def vfm_table(status: dict[str, Any], served: str = "serving") -> Table:
    """The vFMs of one physical FM, a row each; ``served`` is what the state of a good one is called."""
    table = Table(title=f"physical FM {status['fm']}: {status['backbone']}", title_justify="left", min_width=60)
    # On a narrow terminal the kind and a bundle's ports are folded; names and figures stay whole.
    for column in ("vFM", "state", "kind", "adapter"):
        table.add_column(column, no_wrap=column != "kind", overflow="fold", min_width=5)
    for column in ("port", "v.", "weight", "bytes"):
        table.add_column(column, justify="right", no_wrap=column != "port", overflow="fold")
    states = {"serving": f"[green]{served}[/]", "refused": "[red]refused[/]", "quarantined": "[red]quarantined[/]"}
    for vfm in status["vfms"]:
        row = [escape(vfm["name"]), states.get(vfm["state"], vfm["state"])]
        ports = ", ".join(map(str, vfm["ports"]))
        if "kind" in vfm:
            adapter = "LoRA" if vfm["adapter"] else "–"
            row += [vfm["kind"], adapter, ports, str(vfm["version"])]
            row += [f"{vfm['policy']['weight']:g}", f"{vfm['n_bytes']:,}"]
        else:
            row += ["bundle" if vfm["bundle"] else "–", "–", ports, "–", "–", "–"]
        table.add_row(*row)
    return table


def refusals(status: dict[str, Any]) -> list[str]:
    """Why each refused vFM, or newer version of a serving one, is not served."""
    return [vfm["reason"] for vfm in status["vfms"] if vfm["reason"]]


def unreadable(repository: Path) -> list[str]:
    """Configurations that no physical FM looks at because they cannot be read, or name none that is there."""
    found = set(physical_fms(repository))
    problems = []
    for name, folder in model_dirs(repository).items():
        try:
            config = read_config(folder / CONFIG_FILE)
        except Refused as error:
            problems.append(str(error))
            continue
        for step in config.ensemble_scheduling.step:
            if not (repository / step.model_name).is_dir():
                there = ", ".join(sorted(found)) or "none"
                problems.append(f"{name!r}: its step names model {step.model_name!r}; physical FMs are {there}")
    return problems
