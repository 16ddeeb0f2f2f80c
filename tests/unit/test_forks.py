"""Engines forked from one process: started at once, told apart when they end, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.live import wait_for

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.messages import Measure, Measured
from fmplex_backend.repository.config import FMSettings

LIMIT = 60.0


@pytest.fixture(scope="module")
def settings(tiny_backbone: Path) -> FMSettings:
    return FMSettings(backbone=str(tiny_backbone), threads=2)


@pytest.fixture(scope="module")
def forks(settings: FMSettings) -> Iterator[ForkServer]:
    made = ForkServer(settings)
    yield made
    made.close()


@pytest.fixture
def engine(settings: FMSettings, forks: ForkServer) -> Iterator[EngineProcess]:
    made = EngineProcess("cpu", settings, forks)
    made.start(LIMIT)
    yield made
    made.stop(1.0)
    made.close()


def dead(pid: int | None) -> bool:
    assert pid is not None
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def computes(engine: EngineProcess) -> bool:
    """With all its threads, which a fork must not have lost."""
    return len(engine.call(Measure(16, 1.0), Measured, LIMIT).points) > 1


def test_several_at_a_time(engine: EngineProcess, settings: FMSettings, forks: ForkServer) -> None:
    other = EngineProcess("cpu", settings, forks)
    other.start(LIMIT)
    assert engine.pid != other.pid
    assert psutil.Process(forks.pid).num_threads() == 1  # what another one held would be locked in the engine
    assert psutil.Process(engine.pid).ppid() == psutil.Process(other.pid).ppid() == forks.pid
    assert computes(engine)
    assert computes(other)
    other.stop(5.0)
    assert other._process is not None
    assert other._process.poll() == 0  # it ended by itself
    assert computes(engine)
    other.close()


def test_one_that_was_killed_is_told_and_replaced(engine: EngineProcess) -> None:
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGABRT)
    with pytest.raises(EngineDied, match=rf"process {pid}\): ended with code -6"):
        engine.receive(LIMIT)
    engine.start(LIMIT)
    assert engine.pid != pid
    assert computes(engine)


def test_the_fork_server_may_die_too(engine: EngineProcess, forks: ForkServer) -> None:
    first = forks.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineDied):
        engine.receive(LIMIT)
    wait_for(lambda: dead(engine.pid), 10, "the processes are gone")
    engine.start(LIMIT)
    assert forks.pid != first
    assert computes(engine)


def test_interrupts_are_the_hosts(engine: EngineProcess, forks: ForkServer) -> None:
    for pid in (engine.pid, forks.pid):
        assert pid is not None
        os.kill(pid, signal.SIGINT)
    assert computes(engine)


def test_a_backbone_that_cannot_be_loaded() -> None:
    settings = FMSettings(backbone="/nowhere/at/all")
    forks = ForkServer(settings)
    try:
        with pytest.raises(EngineFailure, match="engine on cpu: backbone '/nowhere/at/all'"):
            EngineProcess("cpu", settings, forks).start(LIMIT)
    finally:
        forks.close()


HOST = """
import sys, time
from fmplex_backend.host.engine_process import EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.repository.config import FMSettings
settings = FMSettings(backbone=sys.argv[1])
forks = ForkServer(settings)
engine = EngineProcess("cpu", settings, forks)
engine.start(60)
print(forks.pid, engine.pid, flush=True)
time.sleep(60)
"""


def test_nothing_outlives_the_host(tiny_backbone: Path) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST, str(tiny_backbone)], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert len(pids) == 2
    host.kill()
    host.wait()
    host.stdout.close()
    wait_for(lambda: all(dead(pid) for pid in pids), 10, "the processes are gone")
