"""A task of the catalogue as a user has it: built by the command, served, every held-out row asked, an answer drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live import LiveServer, serve

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[2]
TASK = "italy_power"
"""Its data and its backbone are the smallest downloads of all."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "clients"), "COLUMNS": "200"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL
    )


def catalogue(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "fmplex_tools.cli", "catalogue", *arguments)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue") / "models"
    made = catalogue("build", "--only", TASK, "-r", str(folder))
    assert made.returncode == 0, made.stdout + made.stderr
    assert TASK in made.stdout
    return folder


@pytest.fixture(scope="module")
def live(repository: Path) -> Iterator[LiveServer]:
    with serve(repository, repository) as server:
        yield server


def test_it_is_as_good_served_as_was_written_down(repository: Path, live: LiveServer) -> None:
    done = catalogue("evaluate", "--only", TASK, "-r", str(repository), "--url", live.http)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy" in done.stdout


def test_the_example_draws_its_answers(live: LiveServer, tmp_path: Path) -> None:
    plot = tmp_path / "answers.png"
    example = str(ROOT / "clients/examples/catalogue_predict.py")
    done = run(sys.executable, example, TASK, "--url", live.http, "--plot", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ok"
    assert plot.read_bytes().startswith(b"\x89PNG")
