"""The pods of a fleet on Kubernetes: the head, nodes with a device each, and those that run commands. Pure."""

from __future__ import annotations

import json
import posixpath
from typing import Any

from fmplex_tools.fleet.bind import RESOURCE
from fmplex_tools.fleet.kubernetes_site import (
    CACHE,
    CLIENT_PORT,
    CONFIG,
    CREDENTIALS,
    GCS_PORT,
    HEAD,
    METRICS_PORT,
    NODE_PORT,
    WORKDIR,
    Site,
    in_pod,
)

Json = dict[str, Any]
FLEET_FILE = "fleet.yaml"
USER = 1000
"""Of the image."""
CPUS = 2
"""Of a pod for which nothing else is said."""
HEAD_MEMORY, COMMAND_MEMORY, GPU_HOST_MEMORY = 4 << 30, 2 << 30, 16 << 30
RAY_MEMORY = 1 << 30
"""Of Ray and the agent, beside what the fleet file says of a device."""
SHARED_MEMORY = "2Gi"
"""Requests pass between server and host through it, as in docker-compose.yml."""
_OBJECTS = 80_000_000
"""Bytes of Ray's object store, the least that it takes: nothing of ours goes through it."""
GPU = "nvidia.com/gpu"
_OWN = 0o440
"""Of a secret's files: readable by the pod's user and group alone."""


def fleet_label(site: Site) -> Json:
    """What every pod of the fleet has, and none of another."""
    return {"fmplex-fleet": site.name}


def head_group(site: Site) -> Json:
    """Controller and door; it offers no device."""
    ports = {"gcs-server": GCS_PORT, "client": CLIENT_PORT, "metrics": METRICS_PORT, "door": site.run.door.port}
    pod = _pod(site, HEAD, _memory(site, HEAD), ports, GCS_PORT)
    [container] = pod["spec"]["containers"]
    container["volumeMounts"] += [*_command_mounts(site), *_certificate_mounts(site)]
    pod["spec"]["volumes"] += _command_volumes(site)
    if site.tls_secret is not None:
        pod["spec"]["volumes"].append(
            {"name": "door-tls", "secret": {"secretName": site.tls_secret, "defaultMode": _OWN}}
        )
    if site.run.autoscale:
        del pod["spec"]["automountServiceAccountToken"]  # the autoscaler beside it changes the RayCluster
    # Ray's dashboard and its HTTP health need more of Ray than is installed; see `_probe`.
    more = {"port": str(GCS_PORT), "ray-client-server-port": str(CLIENT_PORT), "include-dashboard": "false"}
    return {"rayStartParams": _start(more), "template": pod}


def worker_group(site: Site, kind: str) -> Json:
    """As many nodes as there are devices of ``kind``, each with one of them."""
    spec = site.fleet.devices[kind]
    pod = _pod(site, kind, _memory(site, kind), {"metrics": METRICS_PORT}, NODE_PORT)
    # In single quotes: the shell takes them away, and so do KubeRay and Ray's autoscaler, which read it before.
    more = {"resources": "'" + json.dumps({f"{RESOURCE}{kind}": 1}) + "'"}
    if spec.cuda:
        [container] = pod["spec"]["containers"]
        for amounts in container["resources"].values():
            amounts[GPU] = "1"
        pod["spec"]["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        more["num-gpus"] = "1"
    group: Json = {"groupName": kind, "minReplicas": spec.count, "maxReplicas": spec.count}
    if site.run.autoscale:  # how many there are is the autoscaler's; to say it here would undo that with every apply
        group["minReplicas"] = 0
    else:
        group["replicas"] = spec.count
    return {**group, "rayStartParams": _start(more), "template": pod}


def command_pod(site: Site, command: list[str]) -> Json:
    """One that runs ``command`` against the fleet and ends."""
    container: Json = {
        "name": "fmplex",
        **_image(site),
        "command": command,
        "workingDir": WORKDIR,
        "env": [*_env(), *_token(site), *_credentials_env(site)],
        **_credentials_from(site),
        "resources": _amounts(1, COMMAND_MEMORY),
        "securityContext": restricted(),
        "volumeMounts": [{"name": "cache", "mountPath": CACHE}, *_store_mounts(site), *_command_mounts(site)],
    }
    volumes = [_empty("cache"), *_store_volumes(site), *_command_volumes(site)]
    spec = {**_pod_spec(site, HEAD), "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    return {"metadata": {"labels": fleet_label(site)}, "spec": spec}


# ---- parts ----


def _pod(site: Site, kind: str, memory: int, ports: dict[str, int], asked: int) -> Json:
    """A Ray node. ``asked``: the port that tells its health."""
    container: Json = {
        "name": "ray",
        **_image(site),
        "workingDir": WORKDIR,
        "env": [
            *_env(),
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            *_credentials_env(site),
        ],
        **_credentials_from(site),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _amounts(site.options.cpus.get(kind, CPUS), memory),
        "securityContext": restricted(),
        "startupProbe": _probe(asked, period=2, failures=150),
        "readinessProbe": _probe(asked, period=5, failures=6),
        "livenessProbe": _probe(asked, period=10, failures=12),
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": CACHE},
            *_store_mounts(site),
        ],
    }
    volumes = [_empty("shared-memory", medium="Memory", sizeLimit=SHARED_MEMORY), _empty("cache")]
    spec = {**_pod_spec(site, kind), "containers": [container], "volumes": [*volumes, *_store_volumes(site)]}
    return {"metadata": {"labels": fleet_label(site)}, "spec": spec}


def _pod_spec(site: Site, kind: str) -> Json:
    account, labels = site.options.service_account, site.options.on.get(kind)
    return {
        **({"serviceAccountName": account} if account is not None else {}),
        **({"nodeSelector": dict(labels)} if labels else {}),
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # a large store is not walked at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def restricted() -> Json:
    """What a container may do: nothing beyond its user's rights."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _start(more: dict[str, str]) -> dict[str, str]:
    """Parameters of ``ray start``. KubeRay's own port for Ray's metrics is 8080, which a door may have."""
    return {
        "node-name": "$POD_NAME",  # the shell's; so `fmplex fleet status` and `drain` name pods
        "node-manager-port": str(NODE_PORT),
        "metrics-export-port": str(METRICS_PORT),
        "object-store-memory": str(_OBJECTS),
        "num-cpus": "0",  # the fleet's actors take none, and Ray would start workers for them
        **more,
    }


def _probe(port: int, period: int, failures: int) -> Json:
    """Ray's head and nodes answer gRPC's health check, and it needs no token. Without ours, KubeRay would ask Ray's
    dashboard agent, which needs more of Ray than is installed."""
    return {"grpc": {"port": port}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _image(site: Site) -> Json:
    return {"image": site.options.image, "imagePullPolicy": "IfNotPresent"}


def _env() -> list[Json]:
    values = {"FMPLEX_CACHE": CACHE, "HF_HOME": f"{CACHE}/huggingface", "RAY_USAGE_STATS_ENABLED": "0"}
    return [{"name": name, "value": value} for name, value in values.items()]


def _token(site: Site) -> list[Json]:
    """Ray's, which KubeRay makes with the cluster and gives to its pods, though not to others."""
    secret = {"name": site.name, "key": "auth_token"}
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]


def _amounts(cpus: int, memory: int) -> Json:
    """The same asked for and allowed: what a device can do is to be what the fleet file says."""
    amounts = {"cpu": str(cpus), "memory": f"{-(-memory >> 20)}Mi"}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _memory(site: Site, kind: str) -> int:
    if (said := site.options.memory.get(kind)) is not None:
        return said
    if kind == HEAD:
        return HEAD_MEMORY
    spec = site.fleet.devices[kind]
    return GPU_HOST_MEMORY if spec.cuda else int(spec.memory) + RAY_MEMORY


def _empty(name: str, **more: str) -> Json:
    return {"name": name, "emptyDir": dict(more)}


# -- volumes --


def _claim(name: str, claim: str) -> Json:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}


def _secret(name: str, secret: str) -> Json:
    return {"name": name, "secret": {"secretName": secret, "defaultMode": _OWN}}


def _store_volumes(site: Site) -> list[Json]:
    made = [_claim("store", f"{site.name}-store")] if site.store is not None else []
    if site.options.credentials is not None and _is_google(site):
        made.append(_secret("credentials", site.options.credentials))
    return made


def _store_mounts(site: Site) -> list[Json]:
    made: list[Json] = [{"name": "store", "mountPath": site.store}] if site.store is not None else []
    if site.options.credentials is not None and _is_google(site):
        made.append({"name": "credentials", "mountPath": CREDENTIALS, "readOnly": True})
    return made


def _command_volumes(site: Site) -> list[Json]:
    """What `fmplex fleet` reads: the fleet file, and the repository unless the image or the store has it."""
    made: list[Json] = [{"name": "fleet", "configMap": {"name": f"{site.name}-fleet"}}]
    return [*made, _claim("repository", f"{site.name}-repository")] if site.repository_claimed else made


def _command_mounts(site: Site) -> list[Json]:
    made: list[Json] = [{"name": "fleet", "mountPath": CONFIG, "readOnly": True}]
    return [*made, {"name": "repository", "mountPath": site.repository}] if site.repository_claimed else made


def _certificate_mounts(site: Site) -> list[Json]:
    """Each file where the fleet file says. Envoy reads them once: mounts that follow changes would gain nothing."""
    door = site.run.door
    if door.tls_cert is None or door.tls_key is None:
        return []
    return [
        {"name": "door-tls", "mountPath": in_pod(str(path)), "subPath": key, "readOnly": True}
        for path, key in ((door.tls_cert, "tls.crt"), (door.tls_key, "tls.key"))
    ]


# -- credentials of a store that is a URL --


def _is_google(site: Site) -> bool:
    return site.run.store.startswith(("gs://", "gcs://"))


def _credentials_from(site: Site) -> Json:
    """Of S3 and others the secret's keys are environment variables (``AWS_ACCESS_KEY_ID``, …)."""
    if site.options.credentials is None or _is_google(site):
        return {}
    return {"envFrom": [{"secretRef": {"name": site.options.credentials}}]}


def _credentials_env(site: Site) -> list[Json]:
    """Google's is a file."""
    if site.options.credentials is None or not _is_google(site):
        return []
    return [{"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": posixpath.join(CREDENTIALS, "key.json")}]
