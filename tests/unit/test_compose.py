"""docker-compose.yml and Dockerfile, as far as they can be checked where no container engine runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from fmplex_tools.health_cli import health
from fmplex_tools.monitoring.writing import CONFIG, PROVISIONING
from fmplex_tools.monitoring_cli import write_command
from fmplex_tools.serve_cli import serve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/data/compose-spec.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return parsed


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instruction and arguments of each line, continuations joined, comments left out."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def arguments(dockerfile: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in dockerfile if instruction == name]


def validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(SCHEMA)


def test_compose_file_is_valid_by_the_specification(compose: dict[str, Any]) -> None:
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator().iter_errors(compose)
    ]
    assert not errors


@pytest.mark.parametrize(
    "mistake",
    [
        {"restart": 3},
        {"shm_sizes": "2gb"},
        {"healthcheck": {"test": 5}},
        {"deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia"}]}}}},
    ],
)
def test_the_schema_would_see_a_mistake(compose: dict[str, Any], mistake: dict[str, Any]) -> None:
    service = compose["services"]["fmplex"] | mistake
    assert not validator().is_valid({"services": {"fmplex": service}})


def test_service_is_what_triton_needs(compose: dict[str, Any]) -> None:
    service = compose["services"]["fmplex"]
    assert {port.split(":")[1] for port in service["ports"]} == {"8000", "8001", "8002"}
    assert service["shm_size"] == "2gb"
    assert "./:/workspace" in service["volumes"]
    assert (ROOT / "model_repository").is_dir()
    assert not any(volume.endswith(":ro") for volume in service["volumes"])
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert service["restart"] == "unless-stopped"


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    used = set()
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("./") or source in compose["volumes"]
            assert not source.startswith("./") or (ROOT / source).is_dir()
            used.add(source)
    assert set(compose["volumes"]) <= used


def test_plain_up_starts_the_server_alone(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles.pop("fmplex") is None
    assert profiles == {name: ["monitoring"] for name in ("monitoring", "prometheus", "grafana")}


def test_prometheus_and_grafana_find_what_is_written_for_them(compose: dict[str, Any], tmp_path: Path) -> None:
    services = compose["services"]
    [*command, folder] = services["monitoring"]["entrypoint"]
    assert command == ["fmplex", "monitoring", "write"]
    app = typer.Typer()
    app.command()(write_command)
    words = [str(tmp_path), *services["monitoring"]["command"]]
    typer.main.get_command(app).main(words, standalone_mode=False)
    config = yaml.safe_load((tmp_path / CONFIG).read_text())
    [scraped] = config["scrape_configs"][0]["static_configs"]
    assert scraped["targets"] == ["fmplex:8002"]
    assert f"--config.file={folder}/{CONFIG}" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_PATHS_PROVISIONING"] == f"{folder}/{PROVISIONING}"
    [source] = yaml.safe_load((tmp_path / PROVISIONING / "datasources/fmplex.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for name in ("prometheus", "grafana"):
        assert f"monitoring:{folder}:ro" in services[name]["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"]), "without TLS, for this machine"
        assert services[name]["depends_on"] == {"monitoring": {"condition": "service_completed_successfully"}}
    assert f"monitoring:{folder}" in services["monitoring"]["volumes"]


def test_dockerfile_and_compose_agree(compose: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    service = compose["services"]["fmplex"]
    [image] = arguments(dockerfile, "ARG")
    assert image == "TRITON_IMAGE=nvcr.io/nvidia/tritonserver:24.10-py3"
    assert service["build"]["args"] == {"TRITON_IMAGE": "${TRITON_IMAGE:-nvcr.io/nvidia/tritonserver:24.10-py3}"}
    [health] = arguments(dockerfile, "HEALTHCHECK")
    assert json.loads(health[health.index("CMD") + 3 :]) == service["healthcheck"]["test"][1:]
    [command] = arguments(dockerfile, "CMD")
    assert json.loads(command) == service["command"]
    assert arguments(dockerfile, "STOPSIGNAL") == [service["stop_signal"]]
    assert set(arguments(dockerfile, "EXPOSE")[0].split()) == {port.split(":")[0] for port in service["ports"]}


def test_copied_files_exist_and_are_not_ignored(dockerfile: list[tuple[str, str]]) -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }
    for copy in arguments(dockerfile, "COPY"):
        *sources, _target = copy.split()
        for source in sources:
            assert (ROOT / source).exists(), f"Dockerfile copies {source}, which is not there"
            assert source.split("/")[0] in kept, f".dockerignore keeps {source} from the builder"


def test_installed_extras_exist(dockerfile: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        extra for run in arguments(dockerfile, "RUN") for found in re.findall(r"\.\[([\w,]+)\]", run)
        for extra in found.split(",")
    }  # fmt: skip
    assert extras
    assert extras <= set(project["optional-dependencies"])
    [entry] = arguments(dockerfile, "ENTRYPOINT")
    assert json.loads(entry)[0] in project["scripts"]


def test_command_is_one_that_serve_understands(compose: dict[str, Any]) -> None:
    app = typer.Typer()
    app.command()(serve)
    arguments = compose["services"]["fmplex"]["command"]
    with typer.main.get_command(app).make_context("serve", list(arguments)) as context:
        assert context.params["repository"] == Path("/workspace/model_repository")
        assert context.params["host"] == "0.0.0.0"


def test_health_check_is_a_command_that_ends_before_it_is_given_up(compose: dict[str, Any]) -> None:
    check = compose["services"]["fmplex"]["healthcheck"]
    _, *command = check["test"]
    assert command[:2] == ["fmplex", "health"]
    app = typer.Typer()
    app.command()(health)
    with typer.main.get_command(app).make_context("health", command[2:]) as context:
        assert context.params["timeout"] < float(check["timeout"].removesuffix("s"))


def test_container_does_not_run_as_root(dockerfile: list[tuple[str, str]]) -> None:
    assert arguments(dockerfile, "USER") == ["1000:1000"]
