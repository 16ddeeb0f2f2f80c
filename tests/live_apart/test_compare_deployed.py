"""Each deployment that is compared, served for real: right answers, a task more, what it takes, nothing left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.tiny import make_fm_repository
from tritonclient.utils import InferenceServerException

from fmplex_backend.arrays import Array
from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.parity import TOLERANCE, check, difference, reference
from fmplex_tools.bench.compare.started import Started, add_task, start

pytestmark = pytest.mark.live

FM = "tiny"


@pytest.fixture(scope="module")
def source(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with nothing but the physical FM."""
    return make_fm_repository(tmp_path_factory.mktemp("source"), FM, tiny_backbone)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Array]:
    """What is right for tasks 0 and 1, which are the same in every deployment."""
    made = DEPLOYMENTS["peft_mixed"].write(tmp_path_factory.mktemp("expected"), source, FM, 2)
    return reference(made.backbone, [made.version(task) for task in range(2)])


@pytest.mark.parametrize("name", [name for name in DEPLOYMENTS if name != "fifo"])  # FMplex but for the policy
def test_it_answers_as_plain_peft(source: Path, expected: list[Array], name: str) -> None:
    adds = name in ("fmplex", "spatial")
    with start(DEPLOYMENTS[name], source, FM, 1 if adds else 2) as started:
        used = started.cpu_seconds()
        assert 0 < started.ready_seconds < 120
        assert started.memory() > 50e6
        if adds:
            assert (add_task(started) or 0) > 0
        elif DEPLOYMENTS[name].shared:
            assert add_task(started) is None
        pids = started.pids()
        assert started.repository.tasks == ("vfm0000", "vfm0001")
        assert check(started, expected=expected) <= TOLERANCE
        assert started.cpu_seconds() > used
        if started.repository.selector:
            notices_what_is_wrong(started, expected)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def notices_what_is_wrong(started: Started, expected: list[Array]) -> None:
    """Another task's adapter, and a bad request among good ones."""
    made = started.repository
    wrong = made.versions.with_name("wrong")
    for task, other in ((0, 1), (1, 0)):
        shutil.copytree(made.version(task), wrong / str(task))
        shutil.copytree(made.version(other) / "adapter", wrong / str(task) / "adapter", dirs_exist_ok=True)
    swapped = reference(made.backbone, [wrong / "0", wrong / "1"])
    assert 1e3 * TOLERANCE < difference(swapped[0], expected[0]) < 1
    with pytest.raises(EngineFailure, match=rf"{started.deployment.title}: 'vfm0000', asked alone, is 0\.\d+ off"):
        check(started, expected=swapped)
    with pytest.raises(InferenceServerException, match="text is empty"):
        started.ask(0, [" "])
    started.repository = replace(made, tasks=("nobody", *made.tasks[1:]))
    with pytest.raises(InferenceServerException, match="no task 'nobody'"):
        started.ask(0, ["a"])
    assert started.ask(1, ["a", "b"]).shape == (2, 3)
