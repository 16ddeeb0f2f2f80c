"""Ray nodes on this machine end with the process that started them, however it is told to stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="needs the extra 'fleet'")
pytestmark = pytest.mark.live

PROGRAM = """
import os, signal, sys
from pathlib import Path
from fmplex_tools.fleet.actors import connect
from fmplex_tools.fleet.local import LocalNodes
from fmplex_tools.planner.fleet_file import Fleet

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
fm = {"memory": "1 MB", "cost": {"cpu": {"alpha": 0.01, "beta": 0.001}}}
vfm = {"fm": "one", "rate": 1, "p99_ms": 1000, "memory": "1 MB"}
fleet = Fleet.model_validate(
    {"devices": {"cpu": {"count": 1, "memory": "1 GB"}}, "fms": {"one": fm}, "vfms": {"task": vfm}}
)
try:
    with LocalNodes(fleet, 1) as nodes:
        connect(nodes.address)
        Path(sys.argv[1]).write_text(nodes.address)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_sigterm_after_connecting_ends_every_node(tmp_path: Path) -> None:
    told = tmp_path / "address"  # not on standard output, where Ray prints what it notices
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(told)], capture_output=True, text=True, timeout=180, check=False
    )

    assert ran.returncode == 7, ran.stderr
    address = told.read_text()
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if address in " ".join(one.info["cmdline"] or ())]
    assert not left, "processes of the cluster"
