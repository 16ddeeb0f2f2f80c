"""``fmplex fleet kubernetes``: a fleet as manifests for KubeRay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from fmplex_backend.errors import InvalidInput
from fmplex_tools.console import err
from fmplex_tools.files import write_whole
from fmplex_tools.fleet.kubernetes import manifests, todo, yaml_of
from fmplex_tools.fleet.kubernetes_site import HEAD, Options, ServiceType
from fmplex_tools.planner.fleet_file import read_fleet

_OF = f"KIND is one of 'devices' in the fleet file, or {HEAD!r}; may be given several times."
_T = TypeVar("_T")


def kubernetes(
    fleet: Annotated[Path, typer.Argument(help="Fleet file with a section 'run'; `fmplex plan --example` prints one.")],
    image: Annotated[str, typer.Option(help="Made of FMplex's Dockerfile, where the cluster can pull it.")] = (
        Options.image
    ),
    namespace: Annotated[str | None, typer.Option(help="Without it, where kubectl puts them.")] = None,
    target: Annotated[Path | None, typer.Option("--out", help="Write it there.", dir_okay=False)] = None,
    cpus: Annotated[list[str] | None, typer.Option(metavar="KIND=N", help=f"Cores of a pod, 2. {_OF}")] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=SIZE",
            help="Of a pod; without it a device's memory and 1 GiB for Ray, 16 GiB beside a GPU, 4 GiB for the head.",
        ),
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option(metavar="KIND=LABEL=VALUE", help="Only on machines with that label.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Of each claim, as Kubernetes says sizes.")] = Options.storage,
    storage_class: Annotated[str | None, typer.Option(help="One that many pods can write to.")] = None,
    repository_in_image: Annotated[
        bool, typer.Option("--repository-in-image", help="'run.repository' is in the image; else a claim holds it.")
    ] = False,
    service: Annotated[ServiceType, typer.Option(help="How the door is reached.")] = Options.service,
    credentials: Annotated[
        str | None, typer.Option(help="Secret for the store: of gs:// with key.json, of others environment variables.")
    ] = None,
    service_account: Annotated[str | None, typer.Option(help="Of all pods, where rights go by it.")] = None,
) -> None:
    """Print Kubernetes' manifests for a fleet: a RayCluster for KubeRay, its door, its store, and who starts it.

    Needs KubeRay's operator, 1.5.1 or newer, and Kubernetes 1.27. What is to be done beforehand goes to standard error.

    Examples:

      fmplex fleet kubernetes fleet.yaml --image registry.example/fmplex:1 | kubectl apply -f -

      fmplex fleet kubernetes fleet.yaml --cpus cpu=4 --memory gpu=32GiB --on gpu=gpu.example/model=L4 --out k8s.yaml
    """
    wanted = read_fleet(fleet)
    options = Options(
        image=image,
        namespace=namespace,
        cpus=_by_kind("--cpus", cpus, _cores),
        memory=_by_kind("--memory", memory, _size),
        on=_labels(on),
        storage=storage,
        storage_class=storage_class,
        repository_in_image=repository_in_image,
        service=service,
        credentials=credentials,
        service_account=service_account,
    )
    text = yaml_of(manifests(wanted, options))
    for line in todo(wanted, options):
        err.print(f"needed: {line}", markup=False, soft_wrap=True)
    if target is None:
        print(text, end="")
        return
    try:
        write_whole(target, text)
    except OSError as error:
        raise InvalidInput(f"--out {target}: cannot be written: {error.strerror}; its folder must be there") from None


def _by_kind(what: str, given: list[str] | None, value: Callable[[str], _T]) -> dict[str, _T]:
    """``KIND=VALUE``, each kind once. Raises `InvalidInput`."""
    made: dict[str, _T] = {}
    for each in given or ():
        kind, sign, text = each.partition("=")
        if not sign or not kind or kind in made:
            raise InvalidInput(f"{what} {each!r}: is not KIND=VALUE of a kind that has none yet; cpu=4 would be right")
        try:
            made[kind] = value(text)
        except ValueError as error:
            raise InvalidInput(f"{what} {each!r}: {error}") from None
    return made


def _cores(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError(f"{text!r} is no number of cores from 1 to 1024")
    return int(text)


def _size(text: str) -> int:
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < 1 << 28:
        raise ValueError(f"{text!r} is no size from 256 MiB on; 16GiB would be right")
    return size


def _labels(given: list[str] | None) -> Mapping[str, Mapping[str, str]]:
    """Several labels of a kind must all be there."""
    made: dict[str, dict[str, str]] = {}
    for each in given or ():
        kind, _, label = each.partition("=")
        name, sign, value = label.partition("=")
        if not sign:
            raise InvalidInput(f"--on {each!r}: is not KIND=LABEL=VALUE; cpu=kubernetes.io/arch=amd64 would be right")
        made.setdefault(kind, {})[name] = value
    return made
