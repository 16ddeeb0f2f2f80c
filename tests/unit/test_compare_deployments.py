"""What `fmplex bench compare` deploys: repositories, fences, and the baselines' models against plain transformers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny import make_fm_repository

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_backend.repository.config import CONFIG_FILE, fm_settings, parameters_of, read_config
from fmplex_tools.bench.compare.baselines import models
from fmplex_tools.bench.compare.baselines.interface import FILL, Rows, Settings
from fmplex_tools.bench.compare.deployments import (
    ALL_TASKS,
    DEPLOYMENTS,
    Deployment,
    PrivateBackbones,
    Repository,
    SharedBackbone,
)
from fmplex_tools.bench.compare.fence import CGROUPS, MPS_THREADS, join, make_fences
from fmplex_tools.bench.compare.parity import TEXTS, difference
from fmplex_tools.bench.compare.plain import plain_answers

FM = "tiny"
TASKS = 3


@pytest.fixture(scope="module")
def source(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with nothing but the physical FM."""
    return make_fm_repository(tmp_path_factory.mktemp("source"), FM, tiny_backbone)


def fences_for(deployment: Deployment) -> list[str]:
    return [f"cpus:{i}" for i in range(TASKS)] if deployment.fenced else []


def written(deployment: Deployment, folder: Path, source: Path) -> Repository:
    return deployment.write(folder, source, FM, TASKS, seed=3, threads=1, fences=fences_for(deployment))


# ---- repositories ----


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_task_can_be_asked_for(tmp_path: Path, source: Path, name: str) -> None:
    made = written(DEPLOYMENTS[name], tmp_path, source)
    assert made.tasks == ("vfm0000", "vfm0001", "vfm0002")
    assert made.labels == (2, 3, 4)
    for task, model in enumerate(made.models):
        config = read_config(made.path / model / CONFIG_FILE)
        assert {tensor.name for tensor in config.input} == {"text"} | ({made.selector} if made.selector else set())
        widths = {tensor.name: list(tensor.dims) for tensor in config.output}
        assert widths["probabilities"] == [max(made.labels) if made.selector else made.labels[task]]
        assert (made.versions / made.tasks[task] / "1" / "vfm.json").is_file()
    there = {path.name for path in made.path.iterdir()}
    assert there == set(made.models) | (set() if DEPLOYMENTS[name].is_baseline else {FM})


def test_all_serve_the_same_weights(tmp_path: Path, source: Path) -> None:
    found = set()
    for name, deployment in DEPLOYMENTS.items():
        version = written(deployment, tmp_path / name, source).versions / "vfm0001" / "1"
        found.add(
            (version / "head.safetensors").read_bytes() + (version / "adapter/adapter_model.safetensors").read_bytes()
        )
    assert len(found) == 1


@pytest.mark.parametrize(("name", "policy"), [("fmplex", "fair"), ("fifo", "fifo")])
def test_fmplex_differs_from_fifo_in_the_policy(tmp_path: Path, source: Path, name: str, policy: str) -> None:
    settings = fm_settings(written(DEPLOYMENTS[name], tmp_path, source).path / FM)
    assert (settings.policy, settings.threads, settings.max_batch_rows) == (policy, 1, 64)


@pytest.mark.parametrize("name", [name for name, deployment in DEPLOYMENTS.items() if deployment.is_baseline])
def test_what_triton_is_told_of_a_baseline(tmp_path: Path, source: Path, tiny_backbone: Path, name: str) -> None:
    deployment = DEPLOYMENTS[name]
    made = written(deployment, tmp_path, source)
    for number, model in enumerate(dict.fromkeys(made.models)):
        config = read_config(made.path / model / CONFIG_FILE)
        assert (config.backend, config.max_batch_size) == ("python", 64)
        assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]  # KIND_CPU
        assert config.HasField("dynamic_batching") == (name != "swapped")
        own = made.tasks if made.selector else (made.tasks[number],)
        fence = f"cpus:{number}" if deployment.fenced else ""
        expected = Settings(tiny_backbone.resolve(), made.versions.resolve(), own, 1, "cpu", fence)
        assert Settings.parse(parameters_of(config)) == expected
        code = (made.path / model / "1" / "model.py").read_text()
        assert importlib.util.find_spec(code.split()[1]) is not None


def test_the_queue_delay_is_the_deployments(tmp_path: Path, source: Path) -> None:
    delayed = SharedBackbone(name="x", title="x", module="peft_mixed", queue_delay_us=2000)
    made = written(delayed, tmp_path, source)
    config = read_config(made.path / ALL_TASKS / CONFIG_FILE)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000


@pytest.mark.parametrize("name", [name for name, deployment in DEPLOYMENTS.items() if not deployment.shared])
def test_a_task_more_is_made_beside(tmp_path: Path, source: Path, name: str) -> None:
    deployment = DEPLOYMENTS[name]
    made = written(deployment, tmp_path, source)
    deployment.make_model(made, 3, tmp_path / "beside", "cpus:0" if deployment.fenced else "")
    more = made.with_another()
    assert (more.tasks[3], more.models[3], more.labels[3]) == ("vfm0003", "vfm0003", 5)
    config = read_config(tmp_path / "beside" / CONFIG_FILE)
    assert next(list(tensor.dims) for tensor in config.output if tensor.name == "probabilities") == [5]
    assert (tmp_path / "beside" / "1").is_dir()


def test_what_cannot_be_made_is_named(tmp_path: Path, source: Path) -> None:
    spatial = DEPLOYMENTS["spatial"]
    with pytest.raises(InvalidInput, match="0 tasks"):
        DEPLOYMENTS["fmplex"].write(tmp_path, source, FM, 0)
    with pytest.raises(InvalidInput, match="1 fences for 2 tasks; spatial partitioning takes 2"):
        spatial.write(tmp_path, source, FM, 2, fences=["cpus:0"])
    with pytest.raises(InvalidInput, match="x takes 0"):
        PrivateBackbones(name="x", title="x").write(tmp_path, source, FM, 1, fences=["cpus:0"])
    with pytest.raises(NotFound, match="no physical FM 'nobody'"):
        DEPLOYMENTS["peft_mixed"].write(tmp_path, source, "nobody", 1)


# ---- models ----


def settings_of(made: Repository, *tasks: str) -> Settings:
    return Settings(made.backbone, made.versions, tasks or made.tasks)


@pytest.fixture(scope="module")
def fleet(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return written(DEPLOYMENTS["peft_mixed"], tmp_path_factory.mktemp("fleet"), source)


@pytest.fixture(scope="module")
def expected(fleet: Repository) -> list[list[list[float]]]:
    return plain_answers(fleet.backbone, [fleet.versions / task / "1" for task in fleet.tasks], TEXTS)


def test_a_private_model_answers_as_plain_peft(fleet: Repository, expected: list[list[list[float]]]) -> None:
    model = models.Private(settings_of(fleet, "vfm0001"))
    first, second = model.answer([Rows([TEXTS[0].encode()]), Rows([text.encode() for text in TEXTS[1:]])])
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    assert difference(np.concatenate([first, second]), np.array(expected[1])) < 1e-5


@pytest.mark.parametrize("kind", [models.Swapped, models.PeftMixed])
def test_each_row_gets_its_own_task(
    fleet: Repository, expected: list[list[list[float]]], kind: type[models.Swapped | models.PeftMixed]
) -> None:
    model = kind(settings_of(fleet))
    asked = [(task, text) for text in range(len(TEXTS)) for task in (2, 0, 1)]
    batch = [Rows([TEXTS[text].encode()], [fleet.tasks[task].encode()]) for task, text in asked]
    batch.append(Rows([text.encode() for text in TEXTS[:3]], [name.encode() for name in fleet.tasks]))
    answers = model.answer(batch)
    for (task, text), answer in zip(asked, answers, strict=False):
        assert isinstance(answer, np.ndarray)
        assert answer.shape == (1, 4)
        assert difference(answer[0, : fleet.labels[task]], np.array(expected[task][text])) < 1e-5
        assert (answer[0, fleet.labels[task] :] == FILL).all()
    several = answers[-1]
    assert isinstance(several, np.ndarray)
    for row in range(3):
        assert difference(several[row, : fleet.labels[row]], np.array(expected[row][row])) < 1e-5


def test_a_bad_request_fails_alone(fleet: Repository) -> None:
    model = models.PeftMixed(settings_of(fleet))
    bad = [Rows([b"\xff"], [b"vfm0000"]), Rows([b" "], [b"vfm0000"]), Rows([b"a"], [b"vfm0009"])]
    *wrong, good = model.answer([*bad, Rows([b"a"], [b"vfm0000"])])
    assert [str(error).partition(":")[0] for error in wrong] == [
        "not valid UTF-8",
        "text is empty",
        "no task 'vfm0009'; there are 'vfm0000' to 'vfm0002'",
    ]
    assert isinstance(good, np.ndarray)
    assert all(isinstance(error, InvalidInput) for error in model.answer(bad)), "a batch without a good request"


def test_an_answer_of_another_width_is_no_answer() -> None:
    assert difference(np.zeros(2), np.zeros(3)) == float("inf")


# ---- fences ----

v1_here = (CGROUPS / "cpu" / "cpu.cfs_quota_us").is_file() and os.access(CGROUPS / "cpu", os.W_OK)
BUSY = """
import sys, threading, time
from fmplex_tools.bench.compare.fence import join
join(sys.argv[1])
def spin():
    while time.monotonic() < end: pass
begun, used, end = time.monotonic(), time.process_time(), time.monotonic() + 1.5
spin()
print((time.process_time() - used) / (time.monotonic() - begun))
"""


@pytest.mark.skipif(not v1_here, reason="no cgroup v1 to write to")
def test_a_fence_of_an_eighth_gives_an_eighth() -> None:
    cpus = len(os.sched_getaffinity(0))
    with make_fences(8) as fences:
        assert fences.how == f"cgroup v1 CPU quota: {cpus / 8:g} of {cpus} CPUs each"
        folders = [Path(member.removeprefix("cgroup:")) for member in fences.members]
        ran = subprocess.run(
            [sys.executable, "-c", BUSY, fences.members[3]], capture_output=True, text=True, check=True
        )
        fair = min(1.0, cpus / 8)
        assert 0.5 * fair < float(ran.stdout) < 1.3 * fair
        assert fences.add() is not None
        quotas = {int((folder / "cpu.cfs_quota_us").read_text()) for folder in folders}
        assert quotas == {cpus * 100_000 // 9}, "with one more, all are cut anew"
    assert not any(folder.exists() for folder in folders)
    assert not any(CGROUPS.joinpath("cpu").glob(f"fmplex-bench-{os.getpid()}-*"))


@pytest.mark.skipif(not v1_here, reason="no cgroup v1 to write to")
def test_groups_go_though_a_process_is_left_in_one_and_those_of_a_dead_benchmark_too() -> None:
    stale = CGROUPS / "cpu" / "fmplex-bench-4194999-0"  # beyond the largest process id
    stale.mkdir(exist_ok=True)
    with make_fences(2) as fences, subprocess.Popen(["sleep", "60"]) as left:
        assert not stale.exists()
        folder = Path(fences.members[0].removeprefix("cgroup:"))
        (folder / "cgroup.procs").write_text(str(left.pid))
        fences.groups.remove() if fences.groups else None
        assert not folder.exists()
        assert left.poll() is None
        left.kill()


def take_files_away(root: Path) -> None:
    """As the kernel does when a group is removed."""
    for file in root.glob("fmplex-bench-*/*"):
        file.unlink()


def test_cgroups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    cpus = len(os.sched_getaffinity(0))
    with make_fences(4, root=tmp_path) as fences:
        assert fences.how == f"cgroup v2 CPU quota: {cpus / 4:g} of {cpus} CPUs each"
        folder = Path(fences.members[2].removeprefix("cgroup:"))
        assert (folder / "cpu.max").read_text() == f"{cpus * 25_000} 100000"
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
        take_files_away(tmp_path)
    assert not folder.exists()


def test_the_smallest_quota_is_one_that_the_kernel_takes(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    cpus = len(os.sched_getaffinity(0))
    many = 150 * cpus
    with make_fences(many, root=tmp_path) as fences:
        quota, period = map(int, Path(fences.members[0][7:], "cpu.max").read_text().split())
        assert quota >= 1000
        assert quota / period == pytest.approx(cpus / many, rel=0.01)
        take_files_away(tmp_path)


def test_without_cgroups_cores_are_shared_out(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with make_fences(2 * len(cpus), root=tmp_path) as fences:
        assert fences.members == [f"cpus:{cpu}" for cpu in cpus * 2]
        assert fences.how == f"CPU affinity (no cgroup can be written): 1 of {len(cpus)} CPUs each, 2 models on one"
        assert fences.add() is None
    with make_fences(1, root=tmp_path) as fences:
        assert fences.members == [f"cpus:{','.join(map(str, cpus))}"]


def test_a_gpu_is_divided_by_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MPS_THREADS, raising=False)
    with make_fences(8, "cuda:0") as fences:
        join(fences.members[7])
    assert os.environ[MPS_THREADS] == "12.5"


def test_a_fence_that_is_none_is_refused() -> None:
    join("")
    with pytest.raises(InvalidInput, match="'wall:1'"):
        join("wall:1")
    with pytest.raises(InvalidInput, match="0 fences"), make_fences(0):
        pass
