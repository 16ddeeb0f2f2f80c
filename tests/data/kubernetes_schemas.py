"""Makes ``kubernetes-schemas.json``: what `tests/unit/test_fleet_kubernetes.py` needs of two larger files.

    python kubernetes_schemas.py ray.io_rayclusters.yaml _definitions.json

README.md beside this says where those come from. Descriptions are left out; where the RayCluster holds a pod template,
a service or metadata of Kubernetes' own, Kubernetes' own schema of it stands; fields that are not named are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KINDS = {
    "v1/ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "v1/PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "v1/Service": "io.k8s.api.core.v1.Service",
    "batch/v1/Job": "io.k8s.api.batch.v1.Job",
    "batch/v1/CronJob": "io.k8s.api.batch.v1.CronJob",
    "networking.k8s.io/v1/NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "ray.io/v1/RayCluster": "io.ray.v1.RayCluster",
}
EMBEDDED = {
    "template": "io.k8s.api.core.v1.PodTemplateSpec",
    "headService": "io.k8s.api.core.v1.Service",
    "metadata": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
}
HERE = "#/$defs/"


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: without_descriptions(value)
            for key, value in schema.items()
            if not (key == "description" and isinstance(value, str))
        }
    return [without_descriptions(each) for each in schema] if isinstance(schema, list) else schema


def strict(schema: Any) -> Any:
    """The CRD's part with references in place of what it repeats of Kubernetes, and unknown fields refused."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(properties := made.get("properties"), dict):
        for name in EMBEDDED.keys() & properties.keys():
            properties[name] = {"$ref": HERE + EMBEDDED[name]}
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    return made


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix(HERE)
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def main(crd: Path, definitions: Path) -> None:
    known = json.loads(definitions.read_text("utf-8"))["$defs"]
    [version] = [each for each in yaml.safe_load(crd.read_text("utf-8"))["spec"]["versions"] if each["name"] == "v1"]
    known["io.ray.v1.RayCluster"] = strict(without_descriptions(version["schema"]["openAPIV3Schema"]))
    needed: dict[str, Any] = {}
    left = list(KINDS.values())
    while left:
        if (name := left.pop()) not in needed:
            needed[name] = without_descriptions(known[name])
            left += references(needed[name])
    kinds = json.dumps(KINDS)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(needed[name], sort_keys=True)}" for name in sorted(needed))
    text = f'{{"kinds": {kinds},\n"$defs": {{\n{lines}\n}}}}\n'
    Path(__file__).with_name("kubernetes-schemas.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
