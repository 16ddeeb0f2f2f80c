"""A fleet as Kubernetes' manifests: KubeRay starts Ray's pods, a job starts the fleet on them. Pure.

1. A ``RayCluster``: the head has the controller and the door, a worker group each kind of device, a pod each device.
2. A job applies the fleet file; its name is that of its content, so that another file or image makes another job.
3. A cron job starts the fleet again where nobody runs it: with its head, Ray forgets what ran; the store does not.
4. Pods of the fleet reach each other; others reach the door alone. Ray obeys whoever has its token.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from typing import Any

import yaml

from fmplex_backend.errors import InvalidInput
from fmplex_tools.fleet.kubernetes_pods import (
    FLEET_FILE,
    Json,
    command_pod,
    fleet_label,
    head_group,
    restricted,
    worker_group,
)
from fmplex_tools.fleet.kubernetes_site import CLIENT_PORT, CONFIG, Options, Site, reader_of, site_of
from fmplex_tools.planner.fleet_file import Fleet

WAIT = 900
"""Seconds for a fleet to be as planned, its images pulled and its weights fetched."""
MOST_BYTES = 1_000_000
"""Of a fleet file: what a ConfigMap takes, and a bit for itself."""
_KEEP_EVERY = "*/2 * * * *"
_DAY = 86_400


def manifests(fleet: Fleet, options: Options) -> list[Json]:
    """All that it takes, in the order in which it is to be made. Raises `NotFound` and `InvalidInput`."""
    site = site_of(fleet, options)
    text = _file(fleet)
    claims = [f"{site.name}-store"] if site.store is not None else []
    claims += [f"{site.name}-repository"] if site.repository_claimed else []
    return [
        _named(site, "v1", "ConfigMap", f"{site.name}-fleet", data={FLEET_FILE: text}),
        *(_claim(site, claim) for claim in claims),
        *_policies(site),
        _cluster(site),
        _door(site),
        _up(site, text),
        _keep(site),
    ]


def yaml_of(made: list[Json]) -> str:
    """As ``kubectl apply -f`` takes it."""
    return str(yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))


def todo(fleet: Fleet, options: Options) -> list[str]:
    """What is to be there before, in words: secrets are not printed, and a repository is not copied by itself."""
    site, in_namespace = site_of(fleet, options), f" -n {options.namespace}" if options.namespace else ""
    door, made = site.run.door, []
    if site.tls_secret is not None:
        files = f"--cert {door.tls_cert} --key {door.tls_key}"
        made.append(f"the door's certificate: kubectl{in_namespace} create secret tls {site.tls_secret} {files}")
    if site.store is None:
        made.append(f"{reader_of(site.run.store)} in the image, for {site.run.store}")
        rights = "by the rights of their machines or service account; --credentials SECRET for others"
        made.append(f"secret {options.credentials}" if options.credentials else f"pods read it {rights}")
    if not options.repository_in_image:
        made.append(f"physical FMs and vFMs as folders in {site.repository} of the head, copied once it runs")
    return made


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Texts of several lines as such, and no anchors: people read it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _file(fleet: Fleet) -> str:
    """The fleet file, with what it says and no more."""
    said = fleet.model_dump(mode="json", exclude_unset=True)
    text = str(yaml.dump(said, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))
    if (size := len(text.encode())) > MOST_BYTES:
        raise InvalidInput(
            f"the fleet file has {size:,} bytes; a ConfigMap takes {MOST_BYTES:,}: say vFMs that are alike as one with "
            "'count', or make fleets of it"
        )
    return text


def _named(site: Site, version: str, kind: str, name: str, **more: Any) -> Json:
    metadata: Json = {"name": name}
    if site.options.namespace is not None:
        metadata["namespace"] = site.options.namespace
    metadata["labels"] = {"app.kubernetes.io/name": "fmplex", **fleet_label(site)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def _claim(site: Site, name: str) -> Json:
    chosen = site.options.storage_class
    spec = {
        "accessModes": ["ReadWriteMany"],
        **({"storageClassName": chosen} if chosen is not None else {}),
        "resources": {"requests": {"storage": site.options.storage}},
    }
    return _named(site, "v1", "PersistentVolumeClaim", name, spec=spec)


def _head(site: Site) -> Json:
    """Labels that KubeRay gives the head's pod."""
    return {"ray.io/cluster": site.name, "ray.io/node-type": "head"}


def _policies(site: Site) -> list[Json]:
    own = {"matchLabels": fleet_label(site)}
    inside = {"podSelector": own, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": own}]}]}
    port = {"protocol": "TCP", "port": site.run.door.port}
    door = {
        "podSelector": {"matchLabels": _head(site)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [port]}],
    }
    version, kind = "networking.k8s.io/v1", "NetworkPolicy"
    return [
        _named(site, version, kind, f"{site.name}-inside", spec=inside),
        _named(site, version, kind, f"{site.name}-door", spec=door),
    ]


def _cluster(site: Site) -> Json:
    spec: Json = {
        "rayVersion": _ray_version(),
        "authOptions": {"mode": "token"},
        "headGroupSpec": head_group(site),
        "workerGroupSpecs": [worker_group(site, kind) for kind in site.fleet.devices],
    }
    if site.run.autoscale:
        spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"securityContext": restricted()}}
    return _named(site, "ray.io/v1", "RayCluster", site.name, spec=spec)


def _ray_version() -> str:
    """The one that FMplex is pinned to, and so the image's."""
    for line in importlib.metadata.requires("fmplex") or ():
        if found := re.match(r"ray==([0-9.]+)", line):
            return found[1]
    raise InvalidInput("this FMplex names no version of Ray: install it from its pyproject.toml")


def _door(site: Site) -> Json:
    port = site.run.door.port
    ports = [{"name": "door", "port": port, "targetPort": "door", "protocol": "TCP"}]
    spec = {"type": site.options.service, "selector": _head(site), "ports": ports}
    return _named(site, "v1", "Service", f"{site.name}-door", spec=spec)


def _address(site: Site) -> str:
    """Of KubeRay's service for the head."""
    return f"ray://{site.name}-head-svc:{CLIENT_PORT}"


def _up_command(site: Site) -> list[str]:
    file, wait = f"{CONFIG}/{FLEET_FILE}", str(WAIT)
    return ["fmplex", "fleet", "up", file, "--address", _address(site), "--wait", wait]


def _up(site: Site, text: str) -> Json:
    """Tried again while pods and the repository are still to come."""
    spec = {
        "backoffLimit": 12,
        "ttlSecondsAfterFinished": _DAY,
        "template": command_pod(site, _up_command(site)),
    }
    content = json.dumps([text, spec], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return _named(site, "batch/v1", "Job", f"{site.name}-up-{digest}", spec=spec)


def _keep(site: Site) -> Json:
    """A fleet that runs is left alone: what changed meanwhile is not applied by this."""
    alive = ["fmplex", "fleet", "status", "--fleet", site.name, "--address", _address(site)]
    line = f"{' '.join(alive)} > /dev/null || exec {' '.join(_up_command(site))}"
    job = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": WAIT + 300,
        "template": command_pod(site, ["/bin/sh", "-c", line]),
    }
    spec = {
        "schedule": _KEEP_EVERY,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 60,
        "successfulJobsHistoryLimit": 0,
        "failedJobsHistoryLimit": 1,
        "jobTemplate": {"spec": job},
    }
    return _named(site, "batch/v1", "CronJob", f"{site.name}-keep", spec=spec)
