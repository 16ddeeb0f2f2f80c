"""One device of a node: a repository that holds what it is told, and the server over it.

The server is a `fmplex serve` of its own, which watches tritonserver and outlives this process.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from fmplex_backend.errors import FMplexError, InvalidInput, Unavailable
from fmplex_backend.repository.config import CONFIG_FILE
from fmplex_tools.console import err
from fmplex_tools.fetching import fetch_backbones
from fmplex_tools.files import write_whole
from fmplex_tools.fleet.artifacts import fetch
from fmplex_tools.fleet.content import Contents, FMContent, VfmContent
from fmplex_tools.fleet.elastic import Load
from fmplex_tools.fleet.kept import Kept
from fmplex_tools.fleet.loads import Loads
from fmplex_tools.process_tree import tree
from fmplex_tools.server.health_port import PATH
from fmplex_tools.server.process import answers, check_port_free, free_ports
from fmplex_tools.serving import fetch_status

STEP = 0.5
"""Seconds between two looks."""
DRAIN = 15.0
"""Seconds for a server to answer what is in flight."""
_TIMEOUT = 5.0


class Ports(BaseModel):
    """Where a device's server listens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    http: int
    grpc: int
    metrics: int
    health: int


class Report(BaseModel):
    """How a device is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    ports: Ports
    memory: int
    """Bytes that it really has."""
    up: bool = False
    """Whether its server answers."""
    pid: int = 0
    told: str = ""
    """Digest of the contents that it was told, which all of this is about; empty: none."""
    held: frozenset[str] = frozenset()
    """vFMs in its repository."""
    serving: frozenset[str] = frozenset()
    """vFMs that it answers for, in whatever version."""
    current: frozenset[str] = frozenset()
    """… in the version and with the configuration that it was told."""
    problems: dict[str, str] = {}
    """vFM, or ``server``, → what is wrong."""
    used: int = 0
    """Bytes that its processes take (PSS)."""
    loads: dict[str, Load] = {}
    """vFM → what has come in for it lately, of those that anything has come in for."""


class Device:
    """See the module. One thread keeps it; `want` and `report` may be called from others."""

    def __init__(self, name: str, host: str, folder: Path, store: str, cuda: int | None) -> None:
        """``folder`` is this device's own; what is there from an earlier life is taken up. ``cuda``: its GPU."""
        self.name, self._host, self._folder, self._store = name, host, folder, store
        self._repository = folder / "repository"
        self._repository.mkdir(parents=True, exist_ok=True)
        self._scratch = folder / "scratch"
        self._server = Kept(folder, "serve")
        self._ports = self._take_ports()
        self._wanted: Contents | None = None
        self._held = self._read_held()
        """What the repository holds by now."""
        self._problems: dict[str, str] = {}
        self._memory = device_memory(cuda)
        self._report = Report(host=host, ports=self._ports, memory=self._memory, held=frozenset(self._held.vfms))
        self._revision = 1
        self._used_at, self._used = 0.0, 0
        self._loads = Loads()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"device {name}", daemon=True)
        self._thread.start()

    # ---- from other threads ----

    def want(self, contents: Contents) -> None:
        """Hold this from now on."""
        with self._lock:
            self._wanted = contents
        self._wake.set()

    def report(self) -> tuple[int, Report]:
        """How it is, with a number that changes when that does."""
        with self._lock:
            return self._revision, self._report

    def close(self, *, down: bool) -> None:
        """Stop keeping it; with ``down`` also end its server, which answers what is in flight before."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        if down:
            self._server.stop(DRAIN)

    # ---- its own thread ----

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                wanted = self._wanted
            try:
                if wanted is not None:
                    self._hold(wanted)
                    self._keep(wanted)
                self._tell(self._look(wanted))
            except Exception as error:  # the thread goes on, and what happened is told
                err.print(f"device {self.name}: {type(error).__name__}: {error}", markup=False)
                self._problems["server"] = f"{type(error).__name__}: {error}"
                self._tell(self._report.model_copy(update={"problems": dict(self._problems)}))
            self._wake.wait(STEP)
            self._wake.clear()

    def _tell(self, report: Report) -> None:
        with self._lock:
            if report != self._report:
                self._report = report
                self._revision += 1

    # -- the repository --

    def _hold(self, wanted: Contents) -> None:
        """Make the repository hold ``wanted``, each part whole; what cannot be got is told and tried again."""
        if wanted == self._held:
            return
        self._problems = {}
        for name, fm in wanted.fms.items():
            if self._held.fms.get(name) != fm:
                self._try(name, partial(self._put_fm, name, fm))
        for name in sorted(self._held.vfms.keys() - wanted.vfms.keys()):
            self._remove(name)
            self._note(vfms={other: vfm for other, vfm in self._held.vfms.items() if other != name})
        for name, vfm in wanted.vfms.items():
            if self._held.vfms.get(name) != vfm and vfm.fm in self._held.fms:
                self._try(name, partial(self._put_vfm, name, vfm))
        for name in sorted(self._held.fms.keys() - wanted.fms.keys()):
            if not any(vfm.fm == name for vfm in self._held.vfms.values()):
                self._remove(name)
                self._note(fms={other: fm for other, fm in self._held.fms.items() if other != name})

    def _try(self, name: str, put: Callable[[], None]) -> None:
        try:
            put()
        except (FMplexError, OSError) as error:
            self._problems[name] = str(error)

    def _put_fm(self, name: str, fm: FMContent) -> None:
        target = self._repository / name
        if target.is_dir():
            write_whole(target / CONFIG_FILE, fm.config)
        else:
            made = self._scratch_folder() / name
            (made / "1").mkdir(parents=True)
            (made / CONFIG_FILE).write_text(fm.config, "utf-8")
            fetch_backbones(made.parent, err)
            made.rename(target)
        self._note(fms=self._held.fms | {name: fm})

    def _put_vfm(self, name: str, vfm: VfmContent) -> None:
        target, before = self._repository / name, self._held.vfms.get(name)
        scratch = self._scratch_folder()
        old = before.versions if before is not None and target.is_dir() else {}
        for number, digest in vfm.versions.items():
            if old.get(number) != digest:
                fetch(digest, self._store, scratch / number)
        if not target.is_dir():
            made = scratch / name
            made.mkdir()
            if vfm.is_bundle:
                (made / vfm.version).mkdir()  # Triton wants one, if an empty one
            for number in vfm.versions:
                (scratch / number).rename(made / number)
            (made / CONFIG_FILE).write_text(vfm.config, "utf-8")
            made.rename(target)
        else:
            for number in sorted(vfm.versions, key=int):
                if (scratch / number).is_dir():
                    if (target / number).is_dir():
                        (target / number).rename(scratch / f"old-{number}")
                    (scratch / number).rename(target / number)
            if before is None or before.config != vfm.config:
                write_whole(target / CONFIG_FILE, vfm.config)
            for number in sorted(old.keys() - vfm.versions.keys(), key=int):
                (target / number).rename(scratch / f"old-{number}")
        self._note(vfms=self._held.vfms | {name: vfm})

    def _remove(self, name: str) -> None:
        if (self._repository / name).is_dir():
            (self._repository / name).rename(self._scratch_folder() / name)

    def _scratch_folder(self) -> Path:
        """Empty, on the repository's file system; what was there before is deleted."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        return self._scratch

    def _note(self, *, fms: dict[str, FMContent] | None = None, vfms: dict[str, VfmContent] | None = None) -> None:
        self._held = Contents(
            fms=self._held.fms if fms is None else fms, vfms=self._held.vfms if vfms is None else vfms
        )
        write_whole(self._folder / "held.json", self._held.model_dump_json())

    def _read_held(self) -> Contents:
        """What an earlier life noted, as far as it is there; the rest is put there again."""
        try:
            noted = Contents.model_validate_json((self._folder / "held.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            noted = Contents()
        there = {path.name for path in self._repository.iterdir()}
        for stranger in there - noted.fms.keys() - noted.vfms.keys():
            self._remove(stranger)
        return Contents(
            fms={name: fm for name, fm in noted.fms.items() if name in there},
            vfms={name: vfm for name, vfm in noted.vfms.items() if name in there},
        )

    # -- the server --

    def _keep(self, wanted: Contents) -> None:
        """The server runs where there is something to serve, and only then."""
        process = self._server.find()
        if not wanted.fms:
            if process is not None:
                self._server.stop(DRAIN)
        elif process is None and self._held.fms:
            ports = self._ports = self._take_ports()
            self._server.start(
                [
                    *(sys.executable, "-m", "fmplex_tools.cli", "serve", "-r", str(self._repository)),
                    *("--host", self._host, "--log-file", str(self._folder / "tritonserver.log")),
                    *(word for name, port in ports for word in (f"--{name}-port", str(port))),
                ],
                {"TERM": "dumb", "COLUMNS": "160"},
            )

    def _take_ports(self) -> Ports:
        """Those of the server that runs, or that ran last if they are free; else others."""
        file = self._folder / "ports.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            noted = Ports.model_validate_json(file.read_text("utf-8"))
            if self._server.find() is not None or self._free(noted):
                return noted
        names = tuple(Ports.model_fields)
        ports = Ports(**dict(zip(names, free_ports(len(names)), strict=True)))
        write_whole(file, ports.model_dump_json())
        return ports

    def _free(self, ports: Ports) -> bool:
        try:
            for _, port in ports:
                check_port_free(self._host, port)
        except InvalidInput:
            return False
        return True

    def _look(self, wanted: Contents | None) -> Report:
        process, http = self._server.find(), f"{self._host}:{self._ports.http}"
        serving: set[str] = set()
        current: set[str] = set()
        problems, ready = dict(self._problems), None
        up = process is not None and answers(f"http://{self._host}:{self._ports.health}{PATH}", _TIMEOUT)
        if process is None and wanted is not None and wanted.fms:
            problems["server"] = f"has ended: {self._server.last_words(400)}"
        if up and (ready := _ready_models(http)) is None:
            # Healthy and too busy to tell what it has: what it had counts, as long as it is to be there.
            serving = set(self._report.serving) & self._held.vfms.keys()
            problems["server"] = f"does not tell within {_TIMEOUT:g} s which models it has"
        elif ready is not None:
            for fm in self._held.fms:
                try:
                    status = fetch_status(http, fm, _TIMEOUT)
                except FMplexError as error:
                    problems[fm] = str(error)
                    continue
                for vfm in status["vfms"]:
                    name = vfm["name"]
                    if vfm["reason"]:
                        problems[name] = vfm["reason"]
                    if vfm["state"] == "serving" and name in ready:
                        serving.add(name)
                        if self._is_current(name, vfm.get("version"), wanted) and not vfm["reason"]:
                            current.add(name)
        return Report(
            host=self._host,
            ports=self._ports,
            memory=self._memory,
            up=up,
            pid=process.pid if process is not None else 0,
            told=wanted.digest if wanted is not None else "",
            held=frozenset(self._held.vfms),
            serving=frozenset(serving),
            current=frozenset(current),
            problems=problems,
            used=self._used_bytes(process),
            loads=self._loads.look(f"{self._host}:{self._ports.metrics}") if up else {},
        )

    def _is_current(self, name: str, version: int | None, wanted: Contents | None) -> bool:
        """``version``: the one that answers; None: it has none, as a bundle."""
        own = wanted.vfms.get(name) if wanted is not None else None
        same = own is not None and (own.is_bundle if version is None else str(version) == own.version)
        return same and self._held.vfms.get(name) == own

    def _used_bytes(self, process: psutil.Process | None) -> int:
        """PSS of the server's processes, in steps of 10 MB, looked at every 10 s: it takes a while."""
        if process is None:
            return 0
        if time.monotonic() - self._used_at > 10:
            total = 0
            for one in tree(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += one.memory_full_info().pss
            self._used, self._used_at = round(total, -7), time.monotonic()
        return self._used


def device_memory(cuda: int | None) -> int:
    """Bytes of the machine, or of a GPU. Raises `Unavailable` where there is no such GPU."""
    if cuda is None:
        return int(psutil.virtual_memory().total)
    ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={cuda}"]
    try:
        told = subprocess.run(ask, check=True, capture_output=True, text=True, timeout=30).stdout
        return int(told) << 20
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Unavailable(f"GPU {cuda} cannot be asked for its memory: {error}") from None


def _ready_models(http: str) -> set[str] | None:
    """None where it does not tell."""
    request = urllib.request.Request(f"http://{http}/v2/repository/index", b'{"ready": true}')
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return {model["name"] for model in json.load(answer)}
    except (urllib.error.URLError, OSError, ValueError):
        return None
