"""Where things lie: versions by Triton's rule, ports in use, names that fit their sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from fmplex_backend.errors import NotFound, Refused
from fmplex_backend.repository.artifact import LABELLED, Kind
from fmplex_backend.repository.config import ensemble_config, write_config
from fmplex_backend.repository.layout import (
    lowest_free_port,
    model_dirs,
    physical_fms,
    ports_in_use,
    socket_dims,
    sockets_of,
    versions,
)
from fmplex_backend.repository.sockets import SOCKETS


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm/config.pbtxt").write_text('backend: "fmplex"')
    for name, ports in {"a": [0], "b": [2], "bundle": [0, 2], "far": [1023]}.items():
        (tmp_path / name).mkdir()
        outputs = {f"out{port}": (port, "vector") for port in ports}
        write_config(tmp_path / name / "config.pbtxt", ensemble_config("minilm", outputs, {o: [2] for o in outputs}))
    return tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["1", "2", "10"], [1, 2, 10]),
        (["0", "01", "-1", "+1", "1.0", "v1", ".1", "1 ", "²"], []),
        ([], []),
    ],
)
def test_versions(tmp_path: Path, names: list[str], found: list[int]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "7").touch()  # a file is no version
    assert versions(tmp_path) == found


def test_ports(repository: Path) -> None:
    assert ports_in_use(repository, "minilm") == {0: ["a", "bundle"], 2: ["b", "bundle"], 1023: ["far"]}
    assert lowest_free_port(repository, "minilm", 1024) == 1
    assert lowest_free_port(repository, "another", 1024) == 0
    (repository / "a/config.pbtxt").unlink()
    os.rename(repository / "bundle", repository / ".bundle")
    assert lowest_free_port(repository, "minilm", 1024) == 0
    write_config(repository / "a/config.pbtxt", ensemble_config("minilm", {"o": (0, "vector")}, {"o": [2]}))
    with pytest.raises(Refused, match="all 1 ports are taken; raise its parameter 'ports'"):
        lowest_free_port(repository, "minilm", 1)


def test_models(repository: Path) -> None:
    (repository / "not a model").mkdir()
    (repository / "broken").mkdir()
    (repository / "broken/config.pbtxt").write_text("{")
    assert list(model_dirs(repository)) == ["a", "b", "broken", "bundle", "far", "minilm"]
    assert physical_fms(repository) == ["minilm"]
    with pytest.raises(NotFound, match="no model repository at"):
        model_dirs(repository / "nowhere")


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_every_kind_has_outputs_that_fit_their_sockets(kind: Kind, pooling: str) -> None:
    dims = socket_dims(kind, pooling, 5)  # type: ignore[arg-type]
    sockets = sockets_of(kind, pooling)  # type: ignore[arg-type]
    assert {*sockets.values(), "info"} == dims.keys()
    for socket, shape in dims.items():
        assert len(shape) == SOCKETS[socket].rank
    assert (kind in LABELLED or kind == "forecast") == ("text" in dims)
