"""The host ends with tritonserver, whatever it is doing; tritonserver is not ended with the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from fmplex_backend.host.guard import Guard

Process = subprocess.Popen[bytes]


@pytest.fixture
def processes() -> Iterator[tuple[Process, Process]]:
    """A server and a host, which waits without ever running Python again."""
    started = [subprocess.Popen([sys.executable, "-c", "import ctypes; ctypes.PyDLL(None).pause()"]) for _ in range(2)]
    yield started[0], started[1]
    for process in started:
        process.kill()
        process.wait()


def test_the_host_ends_with_the_server(processes: tuple[Process, Process]) -> None:
    server, host = processes
    guard = Guard(server.pid, host.pid)
    server.kill()
    assert host.wait(30) == -signal.SIGKILL
    assert guard._process.wait(30) == 0


def test_the_server_outlives_the_host(processes: tuple[Process, Process]) -> None:
    server, host = processes
    guard = Guard(server.pid, host.pid)
    host.kill()
    assert guard._process.wait(30) == 0
    assert server.poll() is None


def test_signals_to_the_group_do_not_reach_it(processes: tuple[Process, Process]) -> None:
    guard = Guard(*(process.pid for process in processes))
    assert os.getpgid(guard._process.pid) == guard._process.pid
    guard.close()


def test_closing_ends_it_alone(processes: tuple[Process, Process]) -> None:
    server, host = processes
    guard = Guard(server.pid, host.pid)
    guard.close()
    assert not psutil.pid_exists(guard._process.pid)
    assert (server.poll(), host.poll()) == (None, None)
