"""Follows the model repository: reads, checks, loads and retires generations of vFMs.

A scan compares the repository with what is served. A new or changed version is read, checked and loaded to one side
and then swapped in whole; what is broken is refused by name and leaves everything else, its own older generation
included, as it was. Where the answers go is `fmplex_backend.host.routes`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.routes import Claim, Route, RouteTable, Serving
from fmplex_backend.repository.config import CONFIG_FILE, FMSettings, VfmConfig, read_config, vfm_config
from fmplex_backend.repository.interface import check_interface
from fmplex_backend.repository.layout import model_dirs, ports_of, version_to_serve
from fmplex_backend.repository.packed import pack, read_version, signature
from fmplex_backend.scheduling.interface import VfmPolicy


@dataclass
class _Entry:
    """What is known of one ensemble that uses this physical FM."""

    name: str
    folder: Path
    config_seen: tuple[int, int, int] | None = None
    ports: frozenset[int] = frozenset()
    """That its newest config maps, even where the config is refused for something else."""
    config: VfmConfig | None = None
    """The newest good one."""
    config_refusal: Refused | None = None
    seen: tuple[object, ...] | None = None
    """Key of its version at the last scan."""
    tried: tuple[object, ...] | None = None
    """Key that was loaded or refused."""
    refusal: Refused | None = None
    generation: Generation | None = None


class Registry:
    """See the module. `scan` is called from one thread; `routes` may be read from any."""

    def __init__(
        self,
        repository: Path,
        fm: str,
        settings: FMSettings,
        facts: BackboneFacts,
        dispatcher: Dispatcher,
        work_dir: Path,
        log: Callable[[str], None],
    ) -> None:
        self._repository, self._fm, self._settings, self._facts = repository, fm, settings, facts
        self._dispatcher, self._work_dir, self._log = dispatcher, work_dir, log
        self._fm_max_batch_size = read_config(repository / fm / CONFIG_FILE).max_batch_size
        self._entries: dict[str, _Entry] = {}
        self._table = RouteTable()
        self._generations = 0
        self._at_rest = True
        self.routes: Mapping[int, Route] = {}

    def scan(self, *, settled: bool = False) -> bool:
        """Bring what is served in line with the repository; whether it is, or a version waits for the next scan.

        A version whose files changed since the last scan is left for the next one, since somebody may still be
        writing it; ``settled`` takes it at once.
        """
        self._at_rest = True
        folders = model_dirs(self._repository)
        for name in self._entries.keys() - folders.keys():
            self._remove(self._entries.pop(name))
        for name, folder in folders.items():
            entry = self._entries.setdefault(name, _Entry(name, folder))
            self._read_config(entry)
            if entry.config is not None and not entry.config.is_bundle:
                self._follow(entry, settled)
        self._reroute()
        return self._at_rest

    def _reroute(self) -> None:
        self.routes = self._table.build(self._claims(), time.monotonic())

    def _claims(self) -> Iterator[Claim]:
        for entry in self._entries.values():
            serving = None
            if entry.generation is not None and entry.config is not None:
                serving = Serving(entry.generation, entry.config.policy)
            if len(entry.ports) == 1:
                yield Claim(entry.name, min(entry.ports), serving, entry.config_refusal or entry.refusal)

    # ---- configurations ----

    def _read_config(self, entry: _Entry) -> None:
        try:
            stat = (entry.folder / CONFIG_FILE).stat()
        except OSError:
            return  # gone between listing and looking; the next scan sees it
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen == entry.config_seen:
            return
        entry.config_seen = seen
        try:
            config = self._parse_config(entry)
        except Refused as error:
            entry.config_refusal = error
            self._log_refusal(entry, error)
            return
        entry.config_refusal = None
        if config is None or config.is_bundle:
            self._remove(entry)
        elif entry.generation is not None:
            self._dispatcher.set_policy(entry.name, _queue_policy(config), new=False)
            if entry.config is not None and entry.config.policy != config.policy:
                self._log(f"vFM {entry.name!r}: policy is now {config.policy.model_dump()}")
        entry.config = config

    def _parse_config(self, entry: _Entry) -> VfmConfig | None:
        config = read_config(entry.folder / CONFIG_FILE)
        entry.ports = ports_of(config, self._fm)
        if entry.ports and max(entry.ports) >= self._settings.ports:
            raise Refused(
                f"vFM {entry.name!r}: port {max(entry.ports)} is out of range; physical FM {self._fm!r} has ports 0 to "
                f"{self._settings.ports - 1} (its parameter 'ports')"
            )
        return vfm_config(entry.name, config, {self._fm})

    # ---- generations ----

    def _follow(self, entry: _Entry, settled: bool) -> None:
        """Load the version that ``entry`` should serve, where it changed and its files have come to rest."""
        assert entry.config is not None
        version = version_to_serve(entry.config, entry.folder)
        key = _key(entry.config, entry.folder, version)
        at_rest, entry.seen = settled or key == entry.seen, key
        if entry.generation is not None and entry.generation.key == key:
            entry.tried, entry.refusal = key, None
            return
        if key == entry.tried:
            return
        if not at_rest:
            self._at_rest = False
            return
        entry.tried = key
        try:
            generation = self._load(entry.config, entry.folder, version, key)
        except Refused as error:
            entry.refusal = Refused(f"vFM {entry.name!r}: version {version}: {error}")
            self._log_refusal(entry, entry.refusal)
        except FMplexError as error:
            entry.tried = None  # not the vFM's fault: try again at the next scan
            self._log(f"vFM {entry.name!r}: {error}")
        else:
            self._swap(entry, entry.config, generation)

    def _load(self, config: VfmConfig, folder: Path, version: int | None, key: tuple[object, ...]) -> Generation:
        """Read, check, pack and load one version. Raises `Refused`."""
        if version is None:
            raise Refused("it has no version folder (1/, 2/ …) with a vfm.json")
        if not (folder / str(version)).is_dir():
            raise Refused(f"version_policy names it, but there is no folder {version}/")
        content = read_version(folder / str(version), folder, self._facts, self._settings.max_adapter_rank)
        check_interface(config, content, self._fm_max_batch_size)
        self._generations += 1
        path = self._work_dir / f"{self._generations}.safetensors"
        generation = Generation(self._generations, config.name, version, content.artifact, content.width, path, key)
        pack(content, path)
        loaded = self._dispatcher.load(generation)
        if loaded.error is not None:
            path.unlink(missing_ok=True)
            raise Refused(loaded.error)
        generation.n_bytes = loaded.n_bytes
        return generation

    def _swap(self, entry: _Entry, config: VfmConfig, generation: Generation) -> None:
        old, entry.generation, entry.refusal = entry.generation, generation, None
        if old is None:
            self._dispatcher.set_policy(entry.name, _queue_policy(config), new=True)
        self._reroute()
        if old is not None:
            self._dispatcher.retire(old)
        self._log(
            f"vFM {entry.name!r}: version {generation.version} is served on port {config.ports[0]} "
            f"(generation {generation.number}, {generation.n_bytes} bytes)"
        )

    def _remove(self, entry: _Entry) -> None:
        """Its folder is gone, or it is no vFM any more: take no more rows; those that wait are answered."""
        generation, entry.generation, entry.tried = entry.generation, None, None
        if generation is None:
            return
        self._reroute()
        self._dispatcher.retire(generation)  # first: from here on no row of it is submitted
        self._dispatcher.remove_vfm(entry.name)
        self._log(f"vFM {entry.name!r}: removed")

    def _log_refusal(self, entry: _Entry, error: Refused) -> None:
        kept = f"; generation {entry.generation.number} goes on serving" if entry.generation else ""
        self._log(f"refused: {error}{kept}")

    # ---- status ----

    def status(self) -> list[dict[str, Any]]:
        """One plain record a vFM or bundle, in name order."""
        return [self._record(entry) for _, entry in sorted(self._entries.items()) if self._concerns(entry)]

    def _concerns(self, entry: _Entry) -> bool:
        return bool(entry.ports) or entry.config is not None or entry.config_refusal is not None

    def _record(self, entry: _Entry) -> dict[str, Any]:
        ports = sorted(entry.ports)
        record: dict[str, Any] = {"name": entry.name, "ports": ports}
        refusal = entry.config_refusal or entry.refusal
        if len(ports) > 1:
            refusal = refusal or self._bundle_refusal(entry)
            state = "refused" if refusal else "serving"
        else:
            route = self.routes.get(ports[0]) if ports else None
            if route is not None and not isinstance(route, Serving) and isinstance(route.error, Refused):
                refusal = refusal or route.error
            serves = isinstance(route, Serving) and route.generation.vfm == entry.name
            state = "serving" if serves else ("refused" if refusal else "loading")
        record |= {"state": state, "reason": str(refusal) if refusal else None, "bundle": len(ports) > 1}
        if (generation := entry.generation) is not None and entry.config is not None:
            record |= {
                "version": generation.version,
                "generation": generation.number,
                "kind": generation.artifact.kind,
                "labels": generation.artifact.labels,
                "adapter": generation.artifact.adapter,
                "n_bytes": generation.n_bytes,
                "policy": entry.config.policy.model_dump(),
                "waiting": self._dispatcher.waiting(entry.name),
            }
        return record

    def _bundle_refusal(self, entry: _Entry) -> Refused | None:
        for port, socket in (entry.config.outputs if entry.config else {}).values():
            route = self.routes.get(port)
            if route is None:
                return Refused(f"bundle {entry.name!r}: port {port} has no vFM")
            if not isinstance(route, Serving):
                return Refused(f"bundle {entry.name!r}: {route.error}")
            if socket not in route.generation.sockets:
                kind = route.generation.artifact.kind
                return Refused(
                    f"bundle {entry.name!r}: vFM {route.generation.vfm!r} ({kind}) does not fill socket {socket!r}"
                )
        return None


def _queue_policy(config: VfmConfig) -> VfmPolicy:
    """The policy in the queue's terms: seconds, and None for what is not limited."""
    policy = config.policy
    rate = policy.rate_limit_rows_per_second
    return VfmPolicy(
        weight=policy.weight,
        max_queue_size=policy.max_queue_size,
        max_rows_in_flight=policy.max_rows_in_flight or None,
        latency_slo=policy.latency_slo_ms / 1e3 or None,
        rate=rate or None,
        burst=policy.rate_limit_burst_rows or max(1, math.ceil(rate)),
    )


def _key(config: VfmConfig, folder: Path, version: int | None) -> tuple[object, ...]:
    """What a generation depends on: its files, and what the configuration promises of it (not where, nor policy)."""
    promised = tuple(sorted((n, s, config.output_dims.get(n)) for n, (_, s) in config.outputs.items()))
    content = signature(folder / str(version)) if version is not None else None
    return (version, content, promised, config.inputs, config.max_batch_size)
