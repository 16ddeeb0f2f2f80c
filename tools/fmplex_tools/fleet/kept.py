"""A process that outlives whoever started it, and is found again by the folder that it was started for.

So an agent or a door can be killed and started anew while what it keeps goes on serving.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from fmplex_backend.errors import EngineFailure
from fmplex_tools.files import write_whole
from fmplex_tools.process_tree import kill, tree

_STARTED = 10.0
"""Seconds for the process to be there."""
_OURS = ("RAY_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""What Ray sets for its workers and must not reach what they start: one thread, no GPU."""


class Kept:
    """At most one process at a time for ``folder``, where its output (``NAME.log``) and number (``NAME.pid``) are."""

    def __init__(self, folder: Path, name: str) -> None:
        self._log, self._pid = folder / f"{name}.log", folder / f"{name}.pid"

    def find(self) -> psutil.Process | None:
        """The process, if it runs."""
        try:
            pid, created = self._pid.read_text().split()
            process = psutil.Process(int(pid))
            alive = process.create_time() == float(created) and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def start(self, command: Sequence[str], more: Mapping[str, str] | None = None) -> psutil.Process:
        """Start ``command`` as nobody's child, ``more`` in its environment. Raises `EngineFailure`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        try:
            subprocess.run(
                [sys.executable, "-m", "fmplex_tools.fleet.kept", str(self._pid), str(self._log), *command],
                env=environment | dict(more or {}),
                check=True,
                timeout=_STARTED,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineFailure(f"{command[0]} cannot be started: {error}") from None
        if (process := self.find()) is None:
            raise EngineFailure(f"{command[0]} ended at once: {self.last_words()}")
        return process

    def stop(self, seconds: float) -> None:
        """SIGTERM, and after ``seconds`` SIGKILL; with every process that it started."""
        if (process := self.find()) is not None:
            processes = tree(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                process.terminate()
                process.wait(seconds)
            kill(processes)
        self._pid.unlink(missing_ok=True)

    def last_words(self, most: int = 2000) -> str:
        """The end of what it printed."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - most))
            return log.read().decode(errors="replace").strip()
        return ""


def _detach(pid_file: Path, log: Path, command: Sequence[str]) -> None:
    """In a process that ends at once: start ``command`` and write down which process it is."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    write_whole(pid_file, f"{process.pid} {psutil.Process(process.pid).create_time()}")


if __name__ == "__main__":
    _detach(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
