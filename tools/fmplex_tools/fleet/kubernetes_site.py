"""What a fleet's pods need of the place where they run, checked once: names, ports, folders. Pure.

1. The fleet file is the same inside the pods and outside. Its absolute paths are mounted where they say, its relative
   ones under `WORKDIR`.
2. A store that is a folder is a claim that all pods share; a store that is a URL needs credentials at most.
3. Whatever Kubernetes, KubeRay or Ray would refuse later, or fail at without a word, is refused here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fsspec import available_protocols
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from fsspec.utils import get_protocol

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_tools.planner.fleet_file import Fleet, RunSpec

HEAD = "head"
"""Stands for the head's pod where kinds of device are named."""
GCS_PORT, NODE_PORT, METRICS_PORT, CLIENT_PORT = 6379, 6380, 6381, 10001
"""Ray's: its head's, every node's, its own metrics', and where commands come in."""
CACHE = "/var/cache/fmplex"
CONFIG = "/etc/fmplex"
"""Where the fleet file is mounted."""
CREDENTIALS = "/etc/fmplex-credentials"
WORKDIR = "/workspace"
MOST_NAME = 40
"""Characters of a fleet's name: KubeRay and Kubernetes add to it and cut what is longer than they take."""
_HEAD_GROUP = "headgroup"
"""What KubeRay calls the head among its groups."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTPE]i|[kMGTPE])?")
_NODE_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")
_WORKERS = range(CLIENT_PORT, 20_000)
"""Ray's clients and workers take these."""
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1|\[::1\]")
_TAKEN = ("/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp",
          "/usr", "/var")  # fmt: skip
"""Folders that every pod has of its own, as every machine."""

ServiceType = Literal["ClusterIP", "NodePort", "LoadBalancer"]


@dataclass(frozen=True)
class Options:
    """What the fleet file does not say, since it concerns Kubernetes alone. Keys are kinds of device, or `HEAD`."""

    image: str = "fmplex:latest"
    namespace: str | None = None
    cpus: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a pod."""
    on: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels of the machines that pods may be on."""
    storage: str = "20Gi"
    """Of each claim."""
    storage_class: str | None = None
    repository_in_image: bool = False
    service: ServiceType = "ClusterIP"
    credentials: str | None = None
    """Secret for a store that is a URL."""
    service_account: str | None = None


@dataclass(frozen=True)
class Site:
    """A fleet and where its pods have what."""

    fleet: Fleet
    run: RunSpec
    options: Options
    store: str | None
    """Folder that all pods share; None: it is a URL."""
    repository: str
    repository_claimed: bool
    """Whether a volume of its own holds it."""

    @property
    def name(self) -> str:
        """The fleet's, and that of all that is made for it."""
        return self.run.name

    @property
    def tls_secret(self) -> str | None:
        """With the door's certificate and key; None: it has none."""
        return f"{self.name}-door-tls" if self.run.door.tls_cert is not None else None


def site_of(fleet: Fleet, options: Options) -> Site:
    """Raises `NotFound` where the file does not say how to run the fleet, and `InvalidInput`."""
    if (run := fleet.run) is None:
        raise NotFound("the fleet file has no section 'run' (repository, store, door): it can be planned, not run")
    _check_names(fleet, run, options)
    _check_door(run)
    store = _shared_folder(run.store)
    repository = in_pod(str(run.repository))
    if store is not None and options.credentials is not None:
        raise InvalidInput(f"--credentials {options.credentials}: the store {run.store!r} is a folder and needs none")
    claimed = not options.repository_in_image and (store is None or not _within(repository, store))
    if claimed and _is_taken(repository):
        raise InvalidInput(
            f"run.repository {str(run.repository)!r}: would be mounted over {repository!r} of the image; "
            "a folder of its own would be right, model_repository or /srv/models"
        )
    return Site(fleet, run, options, store, repository, claimed)


def in_pod(path: str) -> str:
    """A path of the fleet file, inside a pod."""
    return posixpath.normpath(posixpath.join(WORKDIR, path))


def _check_names(fleet: Fleet, run: RunSpec, options: Options) -> None:
    check_label("run.name", run.name, MOST_NAME)
    if run.name[0].isdigit():
        raise InvalidInput(f"run.name {run.name!r}: services of Kubernetes begin with a letter; so should this")
    for kind in fleet.devices:
        check_label("devices", kind, MOST_NAME)
        if kind in (HEAD, _HEAD_GROUP):
            raise InvalidInput(f"devices {kind!r}: the head is called that; another name would be right")
    names = {"namespace": options.namespace, "credentials": options.credentials,
             "service-account": options.service_account, "storage-class": options.storage_class}  # fmt: skip
    for what, name in names.items():
        for part in name.split(".") if name is not None and what != "namespace" else filter(None, [name]):
            check_label(f"--{what}", part)
    if not _QUANTITY.fullmatch(options.storage):
        raise InvalidInput(f"--storage {options.storage!r}: is no size for Kubernetes; 20Gi would be right")
    known = (*fleet.devices, HEAD)
    for what, values in (("--cpus", options.cpus), ("--memory", options.memory), ("--on", options.on)):
        for kind in values:
            if kind not in known:
                raise InvalidInput(f"{what} {kind}: there is no such kind of device; there is {', '.join(known)}")
    for labels in options.on.values():
        for text in (*labels.keys(), *labels.values()):
            if not _NODE_LABEL.fullmatch(text):
                raise InvalidInput(f"--on: {text!r} is no label of a machine; kubernetes.io/arch=amd64 would be right")


def check_label(what: str, name: str, most: int = 63) -> None:
    """Raises `InvalidInput` where ``name`` is none that Kubernetes and its DNS take."""
    if not _LABEL.fullmatch(name) or len(name) > most:
        raise InvalidInput(
            f"{what} {name!r}: is no name for Kubernetes; right are lower-case letters, digits and '-' between them, "
            f"at most {most} characters"
        )


def _check_door(run: RunSpec) -> None:
    door = run.door
    if _LOOPBACK.fullmatch(door.host):
        raise InvalidInput(f"run.door.host {door.host!r}: no other pod reaches that; 0.0.0.0 would be right")
    for what, port in (("port", door.port), ("admin", door.admin)):
        if port < 1024:
            raise InvalidInput(f"run.door.{what} {port}: pods are not root; a port from 1024 would be right")
        if port in (GCS_PORT, NODE_PORT, METRICS_PORT) or port in _WORKERS:
            raise InvalidInput(
                f"run.door.{what} {port}: Ray has {GCS_PORT} to {METRICS_PORT} and {_WORKERS.start} to "
                f"{_WORKERS.stop - 1} of a pod; another, such as 8080, would be right"
            )
    if door.port == door.admin:
        raise InvalidInput(f"run.door.admin {door.admin}: is the door's own port; another would be right")


def _shared_folder(store: str) -> str | None:
    """Of a store that is one; None where it is a URL. Raises `InvalidInput` where pods could not share it."""
    protocol = get_protocol(store)
    if protocol == "memory" or protocol not in available_protocols():
        raise InvalidInput(f"run.store {store!r}: pods share nothing called that; s3://bucket/fmplex would be right")
    if protocol not in LocalFileSystem.protocol:
        return None
    path = store.partition("://")[2] if "://" in store else store
    if not path.startswith("/"):
        raise InvalidInput(
            f"run.store {store!r}: is a folder of this machine, which pods cannot share; an absolute path that all of "
            "them mount, /srv/fmplex, or s3://bucket/fmplex would be right"
        )
    path = posixpath.normpath(path)
    if _is_taken(path):
        raise InvalidInput(
            f"run.store {store!r}: every pod has a {path!r} of its own, so they cannot share it; /srv/fmplex or "
            "s3://bucket/fmplex would be right"
        )
    return path


def reader_of(store: str) -> str:
    """The package that `fsspec` reads a store with that is a URL: ``s3fs``."""
    return str(known_implementations[get_protocol(store)]["class"]).partition(".")[0]


def _is_taken(path: str) -> bool:
    """Whether a volume there would hide what a pod has."""
    return path in ("/", WORKDIR) or any(_within(path, folder) for folder in _TAKEN)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")
