"""A Ray cluster of several nodes on this machine, to try a fleet without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fmplex_backend.errors import Unavailable
from fmplex_tools.fleet.bind import RESOURCE
from fmplex_tools.planner.fleet_file import Fleet

_STARTED = 120.0
_STORE_BYTES = 80_000_000
"""Of Ray's object store, a node: the least that it takes; nothing of ours goes through it."""


def start_nodes(fleet: Fleet, count: int) -> None:
    """``count`` nodes, each offering the next device of the fleet file; the first is the head too.

    Raises `Unavailable` where Ray says no, as where a cluster runs here already.
    """
    kinds = [kind for kind, spec in fleet.devices.items() for _ in range(spec.count)]
    ray = Path(sys.executable).with_name("ray")
    for number in range(count):
        offers = {f"{RESOURCE}{kinds[number]}": 1} if number < len(kinds) else {}
        place = ["--head", "--include-dashboard=false", "--port=6379"] if number == 0 else ["--address=127.0.0.1:6379"]
        command = [str(ray), "start", *place, f"--node-name=node-{number}", "--num-cpus=1"]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats"]
        command += [f"--resources={json.dumps(offers)}"]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                timeout=_STARTED,
            )
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            raise Unavailable(f"Ray does not start: {said[-1] if said else error}; `ray stop` ends another") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"Ray does not start: {error}; pip install 'fmplex[fleet]' has it") from None
