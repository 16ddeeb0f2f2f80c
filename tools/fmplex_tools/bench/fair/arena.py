"""A real server over some vFMs, or copies of them, whose policies are set as an operator would: in their files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from fmplex_backend.errors import EngineFailure, NotFound, Unavailable
from fmplex_backend.repository.config import CONFIG_FILE, Policy, parameters_of, read_config, write_config
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.serving import fetch_status

START_SECONDS = 240.0
STALLED_SECONDS = 60.0
"""Loading a large fleet may take minutes, but none of them without any vFM that comes to be served."""
LOOK_SECONDS = 0.1
POLICY_SECONDS = 5.0
"""Until an edited policy must show."""
_WEIGHT = re.compile(r'(key:\s*"weight"\s*value\s*\{\s*string_value:\s*")[^"]*(")')


@dataclass(frozen=True)
class Arena:
    """Where the server listens, and its repository."""

    options: ServerOptions
    fm: str
    check: Callable[[], None] = lambda: None
    """Raises `EngineFailure` with the server's last words where it has ended."""

    @property
    def url(self) -> str:
        """gRPC ``host:port``."""
        return self.options.grpc

    def status(self) -> dict[str, Any]:
        """What the physical FM says of itself."""
        return fetch_status(self.options.http, self.fm, timeout=30)

    def processes(self, status: Mapping[str, Any] | None = None) -> tuple[psutil.Process, psutil.Process]:
        """tritonserver, and the host of the physical FM; by ``status``, where it was just asked."""
        host = psutil.Process((status or self.status())["host_pid"])
        return next(parent for parent in host.parents() if parent.name().startswith("tritonserver")), host

    def policies(self) -> dict[str, dict[str, Any]]:
        """The policy of each vFM that is served."""
        return {vfm["name"]: vfm["policy"] for vfm in self.status()["vfms"] if vfm["state"] == "serving"}

    def set_policies(self, **policies: dict[str, float]) -> None:
        """Give each named vFM exactly these parameters, and wait until the server says so. Raises `EngineFailure`."""
        wanted = {}
        for name, values in policies.items():
            folder = self.options.repository / name
            config = read_config(folder / CONFIG_FILE)
            config.ClearField("parameters")
            for key, value in values.items():
                config.parameters[key].string_value = f"{value:g}"
            draft = folder.parent.parent / f"{name}.draft"
            write_config(draft, config)
            os.replace(draft, folder / CONFIG_FILE)
            wanted[name] = Policy.parse(parameters_of(config), f"vFM {name!r}").model_dump()
        end = time.monotonic() + POLICY_SECONDS
        while time.monotonic() < end:
            there = self.policies()
            if all(there.get(name) == policy for name, policy in wanted.items()):
                return
            time.sleep(0.05)
        raise EngineFailure(f"the server did not take the policies {wanted} within {POLICY_SECONDS:g} s")

    def edit_weight(self, name: str, weight: float, *, in_place: bool) -> float:
        """Change the weight as a text editor does: in the file itself, or by a new one in its place. Returns when."""
        file = self.options.repository / name / CONFIG_FILE
        text, found = _WEIGHT.subn(rf"\g<1>{weight:g}\g<2>", file.read_text(encoding="utf-8"))
        if found != 1:
            raise EngineFailure(f"{file} has no weight to edit")
        if in_place:
            now = time.monotonic()
            file.write_text(text, encoding="utf-8")
            return now
        draft = file.parent.parent.parent / f"{name}.edited"
        draft.write_text(text, encoding="utf-8")
        now = time.monotonic()
        os.replace(draft, file)
        return now


@contextmanager
def arena(source: Path, fm: str, names: Sequence[str], *, policy: str = "fair", threads: int = 0) -> Iterator[Arena]:
    """A server over copies of ``fm`` and the vFMs ``names`` of the repository ``source``, on free ports.

    Raises `NotFound` where ``source`` lacks one, `EngineFailure` where one is not served.
    """
    with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
        repository = Path(folder) / "repository"
        for name in (fm, *names):
            if not (source / name / CONFIG_FILE).is_file():
                raise NotFound(f"{source} has no model {name!r}; `fmplex demo build` makes the demo's")
            shutil.copytree(source / name, repository / name)
        config = read_config(repository / fm / CONFIG_FILE)
        config.parameters["policy"].string_value = policy
        config.parameters["threads"].string_value = str(threads)
        write_config(repository / fm / CONFIG_FILE, config)
        with serve(repository, fm, names) as made:
            yield made


@contextmanager
def serve(repository: Path, fm: str, names: Collection[str]) -> Iterator[Arena]:
    """A server over ``repository`` on free ports, its vFMs ``names`` served. Raises `EngineFailure`."""
    http, grpc_port, metrics = free_ports(3)
    options = ServerOptions(repository, http, grpc_port, metrics, log_level="warning", drain_seconds=3)
    with TritonServer(options) as server:
        server.wait_ready(START_SECONDS)
        made = Arena(options, fm, server.check)
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
