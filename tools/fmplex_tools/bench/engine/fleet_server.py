"""A real server over a fleet of its own: start it, see what is served, what memory it takes, and on which machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from fmplex_backend.errors import EngineFailure, Unavailable
from fmplex_tools.bench.fair.arena import START_SECONDS, Arena
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports

STALLED_SECONDS = 60.0
"""Loading a large fleet may take minutes, but none of them without any vFM that comes to be served."""
LOOK_SECONDS = 0.1
MEGA = 1e6


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder with ``repository/`` in it and room beside it."""
    with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
        (Path(folder) / "repository").mkdir()
        (Path(folder) / "beside").mkdir()
        yield Path(folder)


@contextmanager
def serve(repository: Path, fm: str, names: Collection[str]) -> Iterator[Arena]:
    """A server over ``repository`` on free ports, its vFMs ``names`` served. Raises `EngineFailure`."""
    http, grpc_port, metrics = free_ports(3)
    options = ServerOptions(repository, http, grpc_port, metrics, log_level="warning", drain_seconds=3)
    with TritonServer(options) as server:
        server.wait_ready(START_SECONDS)
        made = Arena(options, fm)
        try:
            wait_served(made, names)
        except EngineFailure as error:
            raise EngineFailure(f"{error}; the server's last words:\n{server.tail}") from None
        yield made


def wait_served(made: Arena, names: Collection[str], on_look: Callable[[int], None] = lambda served: None) -> None:
    """Wait until the host serves ``names`` and Triton has their endpoints; ``on_look`` hears how many are there.

    Raises `EngineFailure` where none has come for `STALLED_SECONDS`, with what the host says of one that is missing.
    """
    end = time.monotonic() + STALLED_SECONDS
    missing, why = set(names), "the server says nothing"
    with grpc.InferenceServerClient(made.url) as client:
        while missing and time.monotonic() < end:
            before = len(missing)
            try:
                records = {vfm["name"]: vfm for vfm in made.status()["vfms"]}
                served = {name for name, vfm in records.items() if vfm["state"] == "serving"}
                missing = set(names) - (served & _endpoints(client))
                why = records.get(min(missing, default=""), {}).get("reason") or "not there, or loading"
            except (Unavailable, InferenceServerException) as error:  # busy with loading: it answers later
                why = str(error)
            if len(missing) < before:
                end = time.monotonic() + STALLED_SECONDS
            on_look(len(names) - len(missing))
            time.sleep(LOOK_SECONDS)
    if missing:
        raise EngineFailure(f"{len(missing)} of {len(names)} vFMs are not served, e.g. {min(missing)!r}: {why}")


def _endpoints(client: Any) -> set[str]:
    index = client.get_model_repository_index()
    return {model.name for model in index.models if model.state == "READY"}


def memory(made: Arena) -> dict[str, dict[str, float]]:
    """Bytes of the server's processes: ``host``, ``engine`` (all of them) and ``server`` → ``rss`` and ``pss``."""
    status = made.status()
    host = psutil.Process(status["host_pid"])
    server = next(parent for parent in host.parents() if parent.name().startswith("tritonserver"))
    roles = {"host": [host.pid], "engine": list(status["engine_pids"]), "server": [server.pid]}
    found = {role: [psutil.Process(pid).memory_full_info() for pid in pids] for role, pids in roles.items()}
    return {
        role: {"rss": float(sum(one.rss for one in infos)), "pss": float(sum(one.pss for one in infos))}
        for role, infos in found.items()
    }


def machine(made: Arena) -> str:
    """The engine's device and the machine's memory, in words."""
    return f"{made.status()['cost_model']['device']}, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
