"""What the registry knows of one ensemble over its physical FM, and how it tells of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.routes import Route, Serving
from fmplex_backend.repository.config import VfmConfig
from fmplex_backend.repository.watch import Stamp, VersionWatch
from fmplex_backend.scheduling.interface import VfmPolicy

Key = tuple[object, ...]
"""What a generation depends on: the same files and promises give the same key. The version comes first."""


@dataclass(eq=False)
class Entry:
    """One ensemble."""

    name: str
    folder: Path
    config_seen: Stamp | None = None
    config_doubt: Stamp | None = None
    """Of a config by which what is served would go: seen once so far."""
    ports: frozenset[int] = frozenset()
    """That its newest config maps, even where the config is refused for something else."""
    config: VfmConfig | None = None
    """The newest good one."""
    is_vfm: bool = False
    """Whether that is a vFM's, which has versions; a bundle has none."""
    config_refusal: Refused | None = None
    seen: Key | None = None
    """Key of its version at the last scan."""
    tried: Key | None = None
    """Key that was loaded or refused."""
    refusal: Refused | None = None
    generation: Generation | None = None
    """The one that is served."""
    golden: bool = False
    """Whether it has answered golden rows as it must."""

    def __post_init__(self) -> None:
        self._watch = VersionWatch(self.folder)
        self._promised: tuple[VfmConfig, Key] | None = None

    def look(self, config: VfmConfig, *, thorough: bool) -> Key:
        """The key of the version that it should serve now; a look that is not ``thorough`` may miss edits of it."""
        version, content = self._watch.look(config, thorough=thorough)
        if self._promised is None or self._promised[0] is not config:
            self._promised = (config, _promised(config))
        return (version, content, self._promised[1])

    @property
    def concerns(self) -> bool:
        """Whether it is an ensemble over this physical FM at all, or may be one."""
        return bool(self.ports) or self.config is not None or self.config_refusal is not None


def _promised(config: VfmConfig) -> Key:
    """What the configuration promises of the version (not where, nor policy)."""
    outputs = tuple(sorted((n, s, config.output_dims.get(n)) for n, (_, s) in config.outputs.items()))
    return (outputs, config.inputs, config.max_batch_size)


def queue_policy(config: VfmConfig) -> VfmPolicy:
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


def record(entry: Entry, routes: Mapping[int, Route], waiting: int) -> dict[str, Any]:
    """The status of ``entry`` as plain data; ``waiting`` are the rows in its queue."""
    ports = sorted(entry.ports)
    told: dict[str, Any] = {"name": entry.name, "ports": ports}
    refusal: FMplexError | None = entry.config_refusal or entry.refusal
    if len(ports) > 1:
        refusal = refusal or _bundle_refusal(entry, routes)
        state = "refused" if refusal else "serving"
    else:
        route = routes.get(ports[0]) if ports else None
        if route is not None and not isinstance(route, Serving) and isinstance(route.error, Refused):
            refusal = refusal or route.error
        serves = isinstance(route, Serving) and route.generation.vfm == entry.name
        state = "serving" if serves else ("refused" if refusal else "loading")
        if serves and entry.generation is not None and entry.generation.quarantine is not None:
            state, refusal = "quarantined", entry.generation.quarantine
    told |= {"state": state, "reason": str(refusal) if refusal else None, "bundle": len(ports) > 1}
    if (generation := entry.generation) is not None and entry.config is not None:
        told |= {
            "version": generation.version,
            "generation": generation.number,
            "kind": generation.artifact.kind,
            "labels": generation.artifact.labels,
            "channels": getattr(generation.artifact.encoder, "channels", None),
            "adapter": generation.artifact.adapter,
            "golden": "passed" if entry.golden else "none",
            "signed_by": generation.signed_by,
            "n_bytes": generation.n_bytes,
            "pinned": generation.pinned,
            "policy": entry.config.policy.model_dump(),
            "access": "tokens" if entry.config.policy.access_tokens else "anybody",
            "waiting": waiting,
        }
    return told


def _bundle_refusal(entry: Entry, routes: Mapping[int, Route]) -> Refused | None:
    for port, socket in (entry.config.outputs if entry.config else {}).values():
        route = routes.get(port)
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
