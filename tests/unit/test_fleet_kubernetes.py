"""Manifests of fleets for KubeRay, against Kubernetes' and KubeRay's schemas, each other, and how Ray reads them."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound
from fmplex_tools.fleet.kubernetes import MOST_BYTES, manifests, todo, yaml_of
from fmplex_tools.fleet.kubernetes_site import Options
from fmplex_tools.fleet_cli import app
from fmplex_tools.planner.fleet_file import Fleet, parse_fleet

ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((ROOT / "tests/data/kubernetes-schemas.json").read_text(encoding="utf-8"))
Json = dict[str, Any]

PLAIN = """\
devices: {cpu: {count: 3, memory: 3 GB}}
fms: {minilm: {memory: 420 MB, cost: {cpu: {alpha: 0.012, beta: 0.00017}}}}
vfms: {topics: {fm: minilm, count: 4, memory: 90 KB, rate: 0.2, lengths: {16: 3, 64: 1}, p99_ms: 400, weight: 2}}
spread: true
run: {name: fleet, repository: model_repository, store: /srv/fmplex, door: {host: 0.0.0.0, port: 8080}}
"""
GPU = """\
devices: {cpu: {count: 2, memory: 3 GB}, big-gpu: {count: 8, memory: 24 GB, cuda: true}}
fms: {vit: {memory: 1 GB, cost: {cpu: {alpha: 0.1, beta: 0.01}, big-gpu: {alpha: 0.002, beta: 0.0001}}}}
vfms: {shoes: {fm: vit, rate: 9, p99_ms: 200}}
run:
  name: pictures
  repository: /srv/fmplex/models
  store: /srv/fmplex
  door: {host: "::", port: 8443, tls_cert: certificates/door.pem, tls_key: /keys/door.key}
"""
S3 = PLAIN.replace("/srv/fmplex", "s3://bucket/fmplex")
GOOGLE = PLAIN.replace("/srv/fmplex", "gs://bucket/fmplex")
AUTOSCALE = PLAIN.replace("run: {name", "run: {autoscale: true, name")

CASES = {
    "plain": (PLAIN, Options()),
    "gpu, TLS, two kinds, repository in the store": (
        GPU,
        Options(
            image="registry.example/fmplex:1",
            namespace="models",
            cpus={"big-gpu": 8},
            memory={"head": 8 << 30},
            on={"big-gpu": {"gpu.example/model": "L4"}},
            storage="1.5Ti",
            storage_class="shared",
            service="LoadBalancer",
            service_account="fleet",
        ),
    ),
    "S3 with a secret": (S3, Options(credentials="bucket-key", repository_in_image=True)),
    "S3 by rights": (S3, Options(service_account="fleet")),
    "Google's storage": (GOOGLE, Options(credentials="bucket.key", service="NodePort")),
    "autoscaled": (AUTOSCALE, Options()),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Fleet, Options, list[Json]]:
    text, options = CASES[request.param]
    fleet = parse_fleet(text, "test")
    # What is looked at is what kubectl reads.
    return fleet, options, list(yaml.safe_load_all(yaml_of(manifests(fleet, options))))


def made_of(name: str) -> list[Json]:
    text, options = CASES[name]
    return manifests(parse_fleet(text, "test"), options)


def mistakes(manifest: Json) -> list[str]:
    """What the schema of its kind says against it; of one that has none, that."""
    kind = f"{manifest['apiVersion']}/{manifest['kind']}"
    if kind not in SCHEMAS["kinds"]:
        return [f"there is no {kind}"]
    schema = {"$ref": f"#/$defs/{SCHEMAS['kinds'][kind]}", "$defs": SCHEMAS["$defs"]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, each.absolute_path))}: {each.message}" for each in found]


def one(made: list[Json], kind: str) -> Json:
    [found] = [each for each in made if each["kind"] == kind]
    return found


def groups(made: list[Json]) -> dict[str, Json]:
    """Name → head's group, and those of workers."""
    spec = one(made, "RayCluster")["spec"]
    return {"head": spec["headGroupSpec"]} | {each["groupName"]: each for each in spec["workerGroupSpecs"]}


def pods(made: list[Json]) -> Iterator[tuple[str, Json, Json]]:
    """Name, labels and spec of every pod template, the labels as KubeRay gives them."""
    cluster = one(made, "RayCluster")["metadata"]["name"]
    for name, group in groups(made).items():
        kind = {"ray.io/cluster": cluster, "ray.io/node-type": "head" if name == "head" else "worker"}
        template = group["template"]
        yield name, template["metadata"]["labels"] | kind, template["spec"]
    for job in (one(made, "Job")["spec"], one(made, "CronJob")["spec"]["jobTemplate"]["spec"]):
        yield "command", job["template"]["metadata"]["labels"], job["template"]["spec"]


def container_of(spec: Json) -> Json:
    [container] = spec["containers"]
    return container  # type: ignore[no-any-return]


def env_of(spec: Json) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container_of(spec).get("env", ())}


# ---- against the schemas ----


def test_every_manifest_is_valid(case: tuple[Fleet, Options, list[Json]]) -> None:
    _, options, made = case
    for manifest in made:
        assert mistakes(manifest) == [], manifest["kind"]
        assert manifest["metadata"].get("namespace") == options.namespace
    names = [(each["kind"], each["metadata"]["name"]) for each in made]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", name) for _, name in names)


def _pod(manifest: Json) -> Json:
    if manifest["kind"] == "RayCluster":
        return manifest["spec"]["workerGroupSpecs"][0]["template"]["spec"]  # type: ignore[no-any-return]
    return manifest["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("RayCluster", lambda each: each["spec"].update(rayVersions="2.60.0")),
        ("RayCluster", lambda each: each["spec"]["authOptions"].update(mode="secret")),
        ("RayCluster", lambda each: each["spec"]["workerGroupSpecs"][0].pop("groupName")),
        ("RayCluster", lambda each: each["spec"]["headGroupSpec"]["rayStartParams"].update(port=6379)),
        ("RayCluster", lambda each: each["spec"]["workerGroupSpecs"][0].update(replicas="3")),
        ("RayCluster", lambda each: _pod(each)["volumes"][0]["emptyDir"].update(size="2Gi")),
        ("RayCluster", lambda each: container_of(_pod(each))["readinessProbe"]["grpc"].update(port="6380")),
        ("RayCluster", lambda each: container_of(_pod(each)).update(mounts=[])),
        ("Job", lambda each: each["spec"].update(backoffLimits=3)),
        ("Job", lambda each: container_of(_pod(each)).update(command="fmplex fleet up")),
        ("CronJob", lambda each: each["spec"].pop("schedule")),
        ("Service", lambda each: each["spec"]["ports"][0].pop("port")),
        ("Service", lambda each: each["spec"].update(selector=["ray.io/cluster=fleet"])),
        ("ConfigMap", lambda each: each["data"].update({"fleet.yaml": {"devices": 3}})),
        ("PersistentVolumeClaim", lambda each: each["spec"].update(accessMode="ReadWriteMany")),
        ("NetworkPolicy", lambda each: each["spec"]["ingress"][0].update(sources=[])),
        ("NetworkPolicy", lambda each: each.update(apiVersion="v1")),
    ],
)
def test_the_schemas_would_see_a_mistake(kind: str, mistake: Callable[[Json], object]) -> None:
    wrong = copy.deepcopy(next(each for each in made_of("plain") if each["kind"] == kind))
    assert not mistakes(wrong)
    mistake(wrong)
    assert mistakes(wrong)


# ---- against each other ----


def test_the_fleet_file_reads_back_as_it_was(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, _, made = case
    [(name, text)] = one(made, "ConfigMap")["data"].items()
    again = parse_fleet(text, "again")
    assert again == fleet
    assert [vfm.model_fields_set for vfm in again.vfms.values()] == [
        vfm.model_fields_set for vfm in fleet.vfms.values()
    ]
    for _, _, spec in pods(made):
        for mount in container_of(spec)["volumeMounts"]:
            if mount["name"] == "fleet":
                assert f"{mount['mountPath']}/{name}" == "/etc/fmplex/fleet.yaml"


def test_volumes_and_what_they_are_of_are_there(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, _, made = case
    run = fleet.run
    assert run is not None
    claims = {each["metadata"]["name"] for each in made if each["kind"] == "PersistentVolumeClaim"}
    used = set()
    for name, _, spec in pods(made):
        mounts = container_of(spec)["volumeMounts"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"])
        assert {mount["name"] for mount in mounts} == volumes.keys()
        paths = [mount["mountPath"] for mount in mounts]
        assert len(set(paths)) == len(paths)
        assert all(path.startswith("/") for path in paths)
        used |= {
            each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
        }
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] == one(made, "ConfigMap")["metadata"]["name"]
        assert ("/srv/fmplex" in paths) == run.store.startswith("/")  # every pod sees the store
        assert env_of(spec)["FMPLEX_CACHE"] in paths
        if name != "command":
            [shared] = [mount["name"] for mount in mounts if mount["mountPath"] == "/dev/shm"]
            assert volumes[shared]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert used == claims
    assert all(each["spec"]["accessModes"] == ["ReadWriteMany"] for each in made if each["metadata"]["name"] in claims)


def test_the_repository_is_where_the_fleet_file_says(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, options, made = case
    assert fleet.run is not None
    for name, _, spec in pods(made):
        container = container_of(spec)
        wanted = Path(container["workingDir"]) / fleet.run.repository
        over = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        held = any(path in (wanted, *wanted.parents) for path in over)
        if name in ("head", "command"):
            assert held != options.repository_in_image
        elif not str(wanted).startswith(fleet.run.store):
            assert not held  # nodes take from the store alone


def test_service_and_policies_mean_the_head_and_the_door_alone(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, options, made = case
    assert fleet.run is not None
    service = one(made, "Service")["spec"]
    assert service["type"] == options.service
    [port] = service["ports"]
    meant = [(name, spec) for name, labels, spec in pods(made) if service["selector"].items() <= labels.items()]
    assert [name for name, _ in meant] == ["head"]
    ports = {each["name"]: each["containerPort"] for each in container_of(meant[0][1])["ports"]}
    assert ports[port["targetPort"]] == port["port"] == fleet.run.door.port

    inside, door = (each["spec"] for each in made if each["kind"] == "NetworkPolicy")
    own = inside["podSelector"]["matchLabels"]
    assert all(own.items() <= labels.items() for _, labels, _ in pods(made))
    assert inside["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
    assert door["podSelector"]["matchLabels"] == service["selector"]
    assert door["ingress"] == [{"ports": [{"protocol": "TCP", "port": fleet.run.door.port}]}]
    assert inside["policyTypes"] == door["policyTypes"] == ["Ingress"]


def test_ports_are_those_that_ray_is_told_and_no_two_are_one(case: tuple[Fleet, Options, list[Json]]) -> None:
    _, _, made = case
    for name, group in groups(made).items():
        container, told = container_of(group["template"]["spec"]), group["rayStartParams"]
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert len(set(ports.values())) == len(ports) == len(container["ports"])
        # Without a port of that name KubeRay adds 8080, a second time where that is the door's.
        assert ports["metrics"] == int(told["metrics-export-port"])
        asked = {container[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        if name == "head":
            assert ports["gcs-server"] == int(told["port"])
            assert ports["client"] == int(told["ray-client-server-port"])
            assert asked == {int(told["port"])}
        else:
            assert asked == {int(told["node-manager-port"])}
        assert int(told["node-manager-port"]) not in ports.values()


def test_a_group_is_what_the_fleet_file_says_of_a_kind(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, options, made = case
    found = groups(made)
    del found["head"]
    assert found.keys() == fleet.devices.keys()
    for kind, spec in fleet.devices.items():
        group = found[kind]
        assert group["maxReplicas"] == spec.count
        if one(made, "RayCluster")["spec"].get("enableInTreeAutoscaling"):
            assert (group["minReplicas"], group.get("replicas")) == (0, None)
        else:
            assert group["minReplicas"] == group["replicas"] == spec.count
        pod = group["template"]["spec"]
        amounts = container_of(pod)["resources"]
        assert amounts["requests"] == amounts["limits"]
        assert amounts["limits"]["cpu"] == str(options.cpus.get(kind, 2))
        assert amounts["limits"].get("nvidia.com/gpu") == ("1" if spec.cuda else None)
        memory = int(amounts["limits"]["memory"].removesuffix("Mi")) << 20
        assert memory >= (16 << 30 if spec.cuda else spec.memory + (1 << 30))
        assert pod.get("nodeSelector", {}) == options.on.get(kind, {})


def test_pods_have_no_more_rights_than_they_need(case: tuple[Fleet, Options, list[Json]]) -> None:
    _, options, made = case
    autoscaled = one(made, "RayCluster")["spec"].get("enableInTreeAutoscaling", False)
    for name, _, spec in pods(made):
        assert spec["securityContext"]["runAsNonRoot"]
        assert container_of(spec)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec.get("automountServiceAccountToken", True) is (autoscaled and name == "head")
        assert spec.get("serviceAccountName") == options.service_account
        assert container_of(spec)["image"] == options.image


def test_ray_obeys_nobody_without_its_token(case: tuple[Fleet, Options, list[Json]]) -> None:
    _, _, made = case
    cluster = one(made, "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    secret = {"name": cluster["metadata"]["name"], "key": "auth_token"}  # as KubeRay makes it
    for name, _, spec in pods(made):
        env = env_of(spec)
        if name == "command":
            assert env["RAY_AUTH_MODE"] == "token"
            assert env["RAY_AUTH_TOKEN"] == {"secretKeyRef": secret}
        else:
            assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & env.keys()  # KubeRay's to set


def test_the_door_has_its_certificate_where_the_fleet_file_says() -> None:
    made = made_of("gpu, TLS, two kinds, repository in the store")
    head = groups(made)["head"]["template"]["spec"]
    mounted = {mount["mountPath"]: mount.get("subPath") for mount in container_of(head)["volumeMounts"]}
    assert mounted["/workspace/certificates/door.pem"] == "tls.crt"
    assert mounted["/keys/door.key"] == "tls.key"
    [secret] = [volume["secret"] for volume in head["volumes"] if "secret" in volume]
    text, options = CASES["gpu, TLS, two kinds, repository in the store"]
    [needed] = [line for line in todo(parse_fleet(text, "test"), options) if "create secret tls" in line]
    assert secret["secretName"] in needed
    assert "--cert certificates/door.pem --key /keys/door.key" in needed
    assert "-n models" in needed


@pytest.mark.parametrize("name", ["S3 with a secret", "Google's storage", "S3 by rights"])
def test_credentials_reach_every_pod(name: str) -> None:
    for _, _, spec in pods(made_of(name)):
        container, key = container_of(spec), env_of(spec).get("GOOGLE_APPLICATION_CREDENTIALS")
        assert container.get("envFrom") == ([{"secretRef": {"name": "bucket-key"}}] if "secret" in name else None)
        secrets = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
        if name == "Google's storage":
            [path] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in secrets]
            assert key == f"{path}/key.json"
            assert list(secrets.values()) == ["bucket.key"]
        else:
            assert key is None
            assert not secrets


# ---- against Ray, KubeRay's way to it, and the command ----


def started(group: Json) -> list[str]:
    """Words of ``ray start`` as they come out of the line that KubeRay makes (convertParamMap) and gives to bash."""
    line = "".join(f" --{name}={value} " for name, value in sorted(group["rayStartParams"].items()))
    shell = ["/bin/bash", "-c", "--", f"printf '%s\\0' {line}"]
    ran = subprocess.run(shell, check=True, capture_output=True, text=True, env={"POD_NAME": "fleet-cpu-worker-x7k2p"})
    return ran.stdout.split("\0")[:-1]


def test_ray_starts_with_what_it_is_told(case: tuple[Fleet, Options, list[Json]]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs the extra 'fleet'")
    from ray._private.utils import parse_resources_json

    _, _, made = case
    for name, group in groups(made).items():
        with scripts.start.make_context("start", started(group)) as context:
            told = context.params
        assert told["node_name"] == "fleet-cpu-worker-x7k2p"
        offered = parse_resources_json(told["resources"], None, None)
        assert offered == ({} if name == "head" else {f"fmplex:{name}": 1})
        assert told["metrics_export_port"] not in (told["port"], told["node_manager_port"])


def test_rays_autoscaler_and_kuberay_read_the_same(case: tuple[Fleet, Options, list[Json]]) -> None:
    module = "ray.autoscaler._private.kuberay.autoscaling_config"
    config = pytest.importorskip(module, reason="needs the extra 'fleet'")
    fleet, _, made = case
    cluster = copy.deepcopy(one(made, "RayCluster"))
    cluster["metadata"].setdefault("namespace", "default")
    for group in cluster["spec"]["workerGroupSpecs"]:
        group.setdefault("replicas", 0)  # as the API server fills it in
        # KubeRay's getResourcesMap
        assert json.loads(group["rayStartParams"]["resources"].strip("'\"` ")) == {f"fmplex:{group['groupName']}": 1}
    types = config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    for kind, spec in fleet.devices.items():
        assert types[kind]["resources"][f"fmplex:{kind}"] == 1
        assert types[kind]["resources"].get("GPU", 0) == int(spec.cuda)
        assert types[kind]["max_workers"] == spec.count


def test_ray_is_the_one_that_the_image_has() -> None:
    version = one(made_of("plain"), "RayCluster")["spec"]["rayVersion"]
    assert f'"ray=={version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def understood(command: list[str]) -> dict[str, Any]:
    """Command and parameters as `fmplex fleet` takes them."""
    assert command[:2] == ["fmplex", "fleet"]
    group = typer.main.get_command(app)
    with group.make_context("fleet", command[2:]) as context:
        name, chosen, rest = group.resolve_command(context, command[2:])  # type: ignore[attr-defined]
        with chosen.make_context(name, rest, parent=context) as inner:
            return {"command": name, **inner.params}


def test_commands_are_ones_that_fmplex_understands(case: tuple[Fleet, Options, list[Json]]) -> None:
    fleet, _, made = case
    assert fleet.run is not None
    address = f"ray://{fleet.run.name}-head-svc:10001"  # of KubeRay's service for the head
    command = container_of(one(made, "Job")["spec"]["template"]["spec"])["command"]
    up = understood(command)
    assert (up["command"], up["fleet"], up["address"]) == ("up", Path("/etc/fmplex/fleet.yaml"), address)
    kept = container_of(one(made, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"])["command"]
    assert kept[:2] == ["/bin/sh", "-c"]
    status, otherwise = kept[2].split(" > /dev/null || exec ")
    asked = understood(shlex.split(status))
    assert (asked["command"], asked["name"], asked["address"]) == ("status", fleet.run.name, address)
    assert shlex.split(otherwise) == command
    assert one(made, "CronJob")["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > up["wait"]


def test_another_file_or_image_is_another_job_and_the_same_is_none() -> None:
    def job(text: str = PLAIN, image: str = "fmplex:1") -> str:
        name = one(manifests(parse_fleet(text, "test"), Options(image=image)), "Job")["metadata"]["name"]
        assert isinstance(name, str)
        return name

    assert job() == job(PLAIN + "\n# a comment\n")
    names = {job(), job(PLAIN.replace("rate: 0.2", "rate: 0.3")), job(image="fmplex:2")}
    assert len(names) == 3


def test_the_image_has_what_pods_need() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    [extras] = re.findall(r"\.\[([\w,]+)\]", text)
    assert {"tools", "fleet"} <= set(extras.split(","))
    _, _, spec = next(pods(made_of("plain")))
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in text
    made = re.findall(r"mkdir -p (.*?) &&", text)
    assert container_of(spec)["workingDir"] in " ".join(made).split()
    assert f"FMPLEX_CACHE={env_of(spec)['FMPLEX_CACHE']} " in text


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda text: text.partition("run:")[0], NotFound, "no section 'run'"),
        (lambda text: text.replace("name: fleet", "name: Fleet_1"), InvalidInput, "run.name 'Fleet_1'"),
        (lambda text: text.replace("name: fleet", "name: 1fleet"), InvalidInput, "run.name '1fleet'.* letter"),
        (lambda text: text.replace("name: fleet", f"name: {'a' * 41}"), InvalidInput, "at most 40"),
        (lambda text: text.replace("cpu", "big.cpu"), InvalidInput, "devices 'big.cpu'"),
        (lambda text: text.replace("cpu", "head"), InvalidInput, "devices 'head'"),
        (lambda text: text.replace("/srv/fmplex", "store"), InvalidInput, "run.store 'store'.*absolute path"),
        (lambda text: text.replace("/srv/fmplex", "~/store"), InvalidInput, "run.store '~/store'"),
        (lambda text: text.replace("/srv/fmplex", "/tmp/store"), InvalidInput, "run.store '/tmp/store'.*of its own"),
        (lambda text: text.replace("/srv/fmplex", "file:///home/me"), InvalidInput, "run.store 'file:///home/me'"),
        (lambda text: text.replace("/srv/fmplex", "/srv/../etc/x"), InvalidInput, "run.store '/srv/../etc/x'"),
        (lambda text: text.replace("/srv/fmplex", "/"), InvalidInput, "run.store '/'"),
        (
            lambda text: text.replace("/srv/fmplex", "'memory://store'"),
            InvalidInput,
            "run.store 'memory://store'.*s3://",
        ),
        (lambda text: text.replace("/srv/fmplex", "'s4://store'"), InvalidInput, "run.store 's4://store'.*s3://"),
        (lambda text: text.replace("model_repository", "/opt/models"), InvalidInput, "run.repository '/opt/models'"),
        (lambda text: text.replace("model_repository", "."), InvalidInput, "run.repository '.'"),
        (lambda text: text.replace("0.0.0.0", "127.0.0.1"), InvalidInput, "run.door.host '127.0.0.1'.*0.0.0.0"),
        (lambda text: text.replace("host: 0.0.0.0, ", ""), InvalidInput, "run.door.host '127.0.0.1'"),
        (lambda text: text.replace("8080", "443"), InvalidInput, "run.door.port 443.*1024"),
        (lambda text: text.replace("8080", "6380"), InvalidInput, "run.door.port 6380: Ray has"),
        (lambda text: text.replace("8080", "10500"), InvalidInput, "run.door.port 10500: Ray has"),
        (lambda text: text.replace("8080", "8081"), InvalidInput, "run.door.admin 8081"),
    ],
)
def test_a_fleet_that_pods_cannot_run_is_refused(
    change: Callable[[str], str], kind: type[FMplexError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        manifests(parse_fleet(change(PLAIN), "test"), Options())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(namespace="My_Models"), "--namespace 'My_Models'"),
        (Options(namespace="a.b"), "--namespace 'a.b'"),
        (Options(credentials="key"), "--credentials key.*folder"),
        (Options(service_account="Fleet"), "--service-account 'Fleet'"),
        (Options(cpus={"gpu": 3}), "--cpus gpu.*cpu, head"),
        (Options(memory={"gpu": 3 << 30}), "--memory gpu"),
        (Options(on={"cpu": {"a b": "c"}}), "--on: 'a b'"),
        (Options(storage="20 GB"), "--storage '20 GB'.*20Gi"),
        (Options(storage_class="-"), "--storage-class '-'"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(options: Options, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        manifests(parse_fleet(PLAIN, "test"), options)


def test_a_fleet_file_too_large_for_a_config_map_is_refused() -> None:
    text = PLAIN.replace("minilm: {", f"minilm: {{backbone: {'x' * MOST_BYTES}, ")
    with pytest.raises(InvalidInput, match=f"{MOST_BYTES:,}.*'count'"):
        manifests(parse_fleet(text, "test"), Options())


# ---- the command ----


def test_the_command_prints_what_kubectl_takes(tmp_path: Path) -> None:
    file, target = tmp_path / "fleet.yaml", tmp_path / "k8s.yaml"
    file.write_text(PLAIN, "utf-8")
    given = [
        "kubernetes",
        str(file),
        "--cpus",
        "cpu=4",
        "--memory",
        "cpu=8GiB",
        "--on",
        "cpu=pool=big",
        "--on",
        "cpu=a=b",
    ]
    printed = CliRunner().invoke(app, given)
    assert printed.exit_code == 0, printed.output
    assert "needed: physical FMs and vFMs" in printed.stderr
    options = Options(cpus={"cpu": 4}, memory={"cpu": 8 << 30}, on={"cpu": {"pool": "big", "a": "b"}})
    assert printed.stdout == yaml_of(manifests(parse_fleet(PLAIN, "test"), options))
    written = CliRunner().invoke(app, [*given, "--out", str(target)])
    assert written.stdout == ""
    assert target.read_text("utf-8") == printed.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--cpus", "4"], "--cpus '4': is not KIND=VALUE"),
        (["--cpus", "cpu=0"], "--cpus 'cpu=0': '0' is no number of cores"),
        (["--cpus", "cpu=2", "--cpus", "cpu=3"], "--cpus 'cpu=3': is not KIND=VALUE of a kind that has none yet"),
        (["--memory", "cpu=lots"], "--memory 'cpu=lots': 'lots' is no size"),
        (["--memory", "cpu=1KB"], "from 256 MiB"),
        (["--on", "cpu=pool"], "--on 'cpu=pool': is not KIND=LABEL=VALUE"),
        (["--out", "/nowhere/k8s.yaml"], "--out /nowhere/k8s.yaml: cannot be written"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path: Path, given: list[str], words: str) -> None:
    (tmp_path / "fleet.yaml").write_text(PLAIN, "utf-8")
    ran = CliRunner().invoke(app, ["kubernetes", str(tmp_path / "fleet.yaml"), *given])
    assert isinstance(ran.exception, InvalidInput)
    assert words in str(ran.exception)
