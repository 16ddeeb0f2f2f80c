"""The README's commands and code are the ones that work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.live import LiveServer

from fmplex_tools.catalogue.specs import chosen

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


LINES = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
COMMANDS = [re.sub(r" {2,}#.*", "", line[2:]) for line in LINES]
CATALOGUE = {entry.name for entry in chosen()}
"""Tasks that the demo's server does not have."""


def fmplex(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fmplex_tools.cli", *arguments]
    wide = os.environ | {"COLUMNS": "200"}  # narrow help cuts the names of options
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=wide)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    run = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("fmplex infer ")])
def test_infer(command: str, server: LiveServer) -> None:
    if command.split()[2] in CATALOGUE:
        pytest.skip("the catalogue is not served here")
    run = fmplex(*shlex.split(command)[1:], "--url", server.http)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"fmplex task (list|set tweet)", c)])
def test_operating(command: str, server: LiveServer) -> None:
    run = fmplex(*shlex.split(command)[1:], "--repository", str(server.repository))
    assert run.returncode == 0, run.stderr


def test_the_demo_passes_its_check(server: LiveServer) -> None:
    run = fmplex("check", "--repository", str(ROOT / "model_repository"))
    assert run.returncode == 0, run.stderr
    assert "everything in it would be served" in run.stdout


def test_every_command_is_known() -> None:
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] != "fmplex":
            continue
        group = words[1:3] if words[1] in ("task", "demo", "bench", "catalogue", "fleet") else words[1:2]
        run = fmplex(*group, "--help")
        assert run.returncode == 0, run.stderr
        for option in (word for word in words if word.startswith("--")):
            assert option in run.stdout, f"{' '.join(group)} has no {option}"


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code.replace("127.0.0.1:8000", server.http), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("negative ")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (ROOT / target).exists(), target
