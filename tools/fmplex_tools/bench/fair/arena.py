"""A real server over a temporary copy of some vFMs, whose policies are set as an operator would: in their files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.errors import EngineFailure, NotFound
from fmplex_backend.repository.config import CONFIG_FILE, Policy, parameters_of, read_config, write_config
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.serving import fetch_status

START_SECONDS = 240.0
POLICY_SECONDS = 5.0
"""Until an edited policy must show."""
_WEIGHT = re.compile(r'(key:\s*"weight"\s*value\s*\{\s*string_value:\s*")[^"]*(")')


@dataclass(frozen=True)
class Arena:
    """Where the server listens, and its repository."""

    options: ServerOptions
    fm: str

    @property
    def url(self) -> str:
        """gRPC ``host:port``."""
        return self.options.grpc

    def status(self) -> dict[str, Any]:
        """What the physical FM says of itself."""
        return fetch_status(self.options.http, self.fm, timeout=30)

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
        http, grpc, metrics = free_ports(3)
        options = ServerOptions(repository, http, grpc, metrics, log_level="warning", drain_seconds=3)
        with TritonServer(options) as server:
            server.wait_ready(START_SECONDS)
            made = Arena(options, fm)
            _wait_served(made, names)
            yield made


def _wait_served(made: Arena, names: Sequence[str]) -> None:
    end = time.monotonic() + 30
    missing = set(names)
    while missing and time.monotonic() < end:
        with contextlib.suppress(Exception):
            missing = set(names) - made.policies().keys()
        time.sleep(0.05)
    if missing:
        raise EngineFailure(f"not served: {', '.join(sorted(missing))}")
