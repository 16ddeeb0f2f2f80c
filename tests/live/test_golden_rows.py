"""A version whose golden rows are answered otherwise on the real server is refused by name; what serves goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.live import LiveServer, ask, wait_for
from support.recipes import Recipe, artifact_of, publish, stage, write_version, write_vfm
from support.reference import Reference

from fmplex_tools.check_cli import check_fm
from fmplex_tools.tasks.artifact_writer import write_golden
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.golden import make_golden

pytestmark = pytest.mark.live

RECIPE = Recipe(outputs=3, lora={"r": 4, "target_modules": ("query", "value")})
TEXTS = ("good film", "a long and dull book about a film")


@pytest.fixture(scope="module")
def backbone(minilm_backbone: Path) -> Backbone:
    return Backbone(str(minilm_backbone))


@pytest.fixture
def vfm(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A vFM of its own for each test, without golden rows at version 1; gone afterwards."""
    name = f"golden_{request.node.name.removeprefix('test_')}"
    write_vfm(server.repository, name, 810, RECIPE, server.backbone)
    server.wait_serving(name)
    yield name
    os.rename(server.repository / name, stage(server.repository, f"removed-{name}"))
    wait_for(lambda: server.vfm(name) is None, f"{name!r} is gone")


def publish_golden(
    server: LiveServer, backbone: Backbone, name: str, version: int, falsify: Callable[[dict[str, Any]], None]
) -> None:
    """Put in ``version`` with golden rows as the tools make them, and then falsified."""
    staging = stage(server.repository, f"{name}.{version}")
    folder = write_version(staging / "1", RECIPE, server.backbone, seed=version)
    write_golden(folder, make_golden(folder, artifact_of(RECIPE, server.backbone), backbone, TEXTS))
    content = json.loads((folder / "golden.json").read_text())
    falsify(content)
    (folder / "golden.json").write_text(json.dumps(content))
    publish(folder, server.repository / name / str(version))


def nothing(_: dict[str, Any]) -> None:
    """Leaves it as it was made."""


def another_sign(content: dict[str, Any]) -> None:
    """The first number, which must be large enough for that to matter."""
    largest = max(content["outputs"][0], key=abs)
    content["outputs"][0] = [-value if value == largest else value for value in content["outputs"][0]]


def reason(server: LiveServer, name: str) -> str | None:
    record = server.vfm(name)
    return None if record is None else record["reason"]


def test_what_answers_as_it_must_is_served(server: LiveServer, backbone: Backbone, vfm: str) -> None:
    assert server.vfm(vfm)["golden"] == "none"
    publish_golden(server, backbone, vfm, 2, nothing)
    assert server.wait_serving(vfm, version=2)["golden"] == "passed"


def test_a_falsified_golden_row(server: LiveServer, backbone: Backbone, vfm: str) -> None:
    """Version 2 is refused by name, version 1 goes on; `fmplex check` says the same; version 3 mends it."""
    publish_golden(server, backbone, vfm, 2, another_sign)
    told = wait_for(lambda: reason(server, vfm), "it is refused")
    assert told.startswith(f"vFM '{vfm}': version 2: its golden input 0 answers [")
    assert "largest difference" in told
    record = server.vfm(vfm)
    assert (record["state"], record["version"], record["golden"]) == ("serving", 1, "none")
    with grpc.InferenceServerClient(server.grpc) as client:
        answer = ask(client, vfm, list(TEXTS))
    assert {info["version"] for info in answer["info"]} == {1}
    expected = Reference(server.repository / vfm / "1", server.backbone)(list(TEXTS))
    np.testing.assert_allclose(answer["logits"], expected, atol=1e-5, rtol=1e-5)
    checked = {vfm["name"]: vfm for vfm in check_fm(server.repository, "minilm")["vfms"]}
    assert checked[vfm]["reason"][:60] == told[:60]
    publish_golden(server, backbone, vfm, 3, nothing)
    server.wait_serving(vfm, version=3, reason=None, golden="passed")


def test_another_adapter_than_the_one_that_it_was_made_with(server: LiveServer, backbone: Backbone, vfm: str) -> None:
    """What golden rows are for: files that are whole, fit, and are not those that were tested."""
    staging = stage(server.repository, f"{vfm}.2")
    folder = write_version(staging / "1", RECIPE, server.backbone, seed=2)
    write_golden(folder, make_golden(folder, artifact_of(RECIPE, server.backbone), backbone, TEXTS))
    other = write_version(staging / "other", RECIPE, server.backbone, seed=3)
    os.replace(other / "adapter/adapter_model.safetensors", folder / "adapter/adapter_model.safetensors")
    publish(folder, server.repository / vfm / "2")
    assert "version 2: its golden input" in wait_for(lambda: reason(server, vfm), "it is refused")
    assert server.vfm(vfm)["version"] == 1
