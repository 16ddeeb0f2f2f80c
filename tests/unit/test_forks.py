"""Engines forked from one process: started at once, told apart when they end, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.live import ended, wait_for
from support.tiny import make_fm_repository

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import WARM
from fmplex_backend.host.engine_process import EngineDied, EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.messages import Measure, Measured
from fmplex_backend.repository.config import FMSettings
from fmplex_tools.server.warm import warm_python

LIMIT = 60.0


@pytest.fixture(scope="module")
def settings(tiny_backbone: Path) -> FMSettings:
    return FMSettings(backbone=str(tiny_backbone), threads=2)


@pytest.fixture(scope="module")
def forks(settings: FMSettings) -> Iterator[ForkServer]:
    made = ForkServer(settings, print)
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
    return not psutil.pid_exists(pid) or ended(psutil.Process(pid))


def computes(engine: EngineProcess) -> bool:
    """With all its threads, which a fork must not have lost."""
    return len(engine.call(Measure(16, 3.0), Measured, LIMIT).points) > 1


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
    wait_for(lambda: dead(engine.pid), "the processes are gone")
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
    forks = ForkServer(settings, print)
    try:
        with pytest.raises(EngineFailure, match="engine on cpu: backbone '/nowhere/at/all'"):
            EngineProcess("cpu", settings, forks).start(LIMIT)
    finally:
        forks.close()


@contextlib.contextmanager
def started_warm(repository: Path, backbone: Path) -> Iterator[tuple[Path, psutil.Process]]:
    make_fm_repository(repository, "fm", backbone)
    before = set(psutil.Process().children())
    with warm_python(repository) as path:
        assert path is not None
        (process,) = set(psutil.Process().children()) - before
        yield path, process


@pytest.fixture(scope="module")
def one_warm(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[tuple[Path, psutil.Process]]:
    with started_warm(tmp_path_factory.mktemp("warm"), tiny_backbone) as made:
        yield made


@pytest.fixture
def warm(one_warm: tuple[Path, psutil.Process], monkeypatch: pytest.MonkeyPatch) -> psutil.Process:
    """Python that is warm, of which fork servers come."""
    path, process = one_warm
    monkeypatch.setenv(WARM, str(path))
    return process


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def from_warm(settings: FMSettings, told: list[str]) -> Iterator[EngineProcess]:
    """An engine that has not been started."""
    forks = ForkServer(settings, told.append)
    made = EngineProcess("cpu", settings, forks)
    yield made
    made.stop(1.0)
    made.close()
    forks.close()


def parents(engine: EngineProcess) -> list[int]:
    """Of its process, the fork server's number first."""
    return [parent.pid for parent in psutil.Process(engine.pid).parents()]


def test_a_fork_server_comes_of_python_that_is_warm(
    warm: psutil.Process, from_warm: EngineProcess, told: list[str]
) -> None:
    from_warm.start(LIMIT)
    first, *rest = parents(from_warm)
    assert rest[0] == warm.pid
    assert computes(from_warm)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineDied):
        from_warm.receive(LIMIT)
    from_warm.start(LIMIT)
    second, *rest = parents(from_warm)
    assert second != first
    assert rest[0] == warm.pid
    assert computes(from_warm)
    assert told == []


def test_what_came_of_it_lives_on_when_it_dies(
    tmp_path: Path,
    tiny_backbone: Path,
    from_warm: EngineProcess,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with started_warm(tmp_path, tiny_backbone) as (path, warm):
        monkeypatch.setenv(WARM, str(path))
        from_warm.start(LIMIT)
        assert warm.pid in parents(from_warm)
        warm.kill()
        wait_for(lambda: dead(warm.pid), "its end")
    pid = from_warm.pid
    assert computes(from_warm)
    from_warm.kill()
    from_warm.start(LIMIT)  # of the same fork server
    assert from_warm.pid != pid
    assert told == []
    os.kill(parents(from_warm)[0], signal.SIGKILL)
    with pytest.raises(EngineDied):
        from_warm.receive(LIMIT)
    from_warm.start(LIMIT)
    assert computes(from_warm)
    (line,) = told
    assert "torch is imported anew" in line


def test_another_python_is_not_taken(
    warm: psutil.Process, from_warm: EngineProcess, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", "/another")
    from_warm.start(LIMIT)
    assert warm.pid not in parents(from_warm)
    assert computes(from_warm)
    assert told == ["engine: Python that is warm has forked nothing, torch is imported anew"]


def test_its_fork_server_ends_with_the_host(warm: psutil.Process, from_warm: EngineProcess, told: list[str]) -> None:
    from_warm.start(LIMIT)
    engine, fork_server = from_warm.pid, parents(from_warm)[0]
    from_warm.close()
    from_warm._fork_server.close()
    wait_for(lambda: dead(engine) and dead(fork_server), "the processes are gone")
    assert warm.is_running()
    assert told == []


def test_a_machine_whose_engines_are_on_gpus_needs_none(tmp_path: Path, tiny_backbone: Path) -> None:
    with warm_python(make_fm_repository(tmp_path, "fm", tiny_backbone, engines="cuda:0,cuda:1")) as path:
        assert path is None


HOST = """
import sys, time
from fmplex_backend.host.engine_process import EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.repository.config import FMSettings
settings = FMSettings(backbone=sys.argv[1])
forks = ForkServer(settings, print)
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
    wait_for(lambda: all(dead(pid) for pid in pids), "the processes are gone")
