"""The deployments that are compared: each makes a complete Triton model repository for the same tasks.

A task is a LoRA and a linear head on the backbone of a physical FM, as `fmplex_tools.bench.engine.fleet` makes them:
the same weights in every deployment.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.backbones.source import resolve
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.config import CONFIG_FILE, fm_settings, write_config
from fmplex_tools.bench.compare.baselines.interface import PROBABILITIES, SELECTOR, TEXT, Settings
from fmplex_tools.bench.engine.fleet import Fleet, fleet_of, make_fleet

MAX_BATCH_ROWS = 64
"""Of every baseline; FMplex's own is the physical FM's ``max_batch_rows``, the same unless it is set."""
ALL_TASKS = "all_tasks"
"""Triton's name of a baseline's one model for all tasks."""
QUEUE_DELAY_US = 0
"""Triton forms the next batch while one runs, so that waiting for more rows gains nothing under load: 0, 2 and 5 ms
gave the same rows/s within noise at N = 8, and 0 the best latency with few clients."""
PRIVATE_THREADS = 1
"""Of each private model. On 2 cores at N = 8, 1 thread gave about 1.1 times the rows per CPU second of 2 threads under
load, and was no slower with 2 clients."""


@dataclass(frozen=True)
class Repository:
    """A model repository, and how to ask it. Task i is ``tasks[i]``, with ``labels[i]`` labels, in ``models[i]``."""

    path: Path
    versions: Path
    """Folder with the version folder ``<task>/1`` of each task."""
    fleet: Fleet
    backbone: Path
    device: str
    threads: int
    models: tuple[str, ...]
    """Names of the Triton models: input ``text`` BYTES [1], output ``probabilities`` FP32 [labels]."""
    selector: str | None
    """Name of a second input, BYTES [1], that says which task is meant; what is answered is then as wide as the task
    with most labels needs, with `baselines.interface.FILL` behind a task's own."""
    tasks: tuple[str, ...]
    labels: tuple[int, ...]

    def version(self, index: int) -> Path:
        """The version folder of task ``index``."""
        return self.versions / self.tasks[index] / "1"

    def with_another(self) -> Repository:
        """With the fleet's next task, in a model of its own."""
        index = len(self.tasks)
        name, labels = self.fleet.name(index), len(self.fleet.labels(index))
        return replace(self, models=(*self.models, name), tasks=(*self.tasks, name), labels=(*self.labels, labels))


@dataclass(frozen=True, kw_only=True)
class Deployment(ABC):
    """One way to serve the tasks."""

    name: str
    title: str
    """For people."""
    fenced: bool = False
    """Whether each model has a fixed part of the machine."""
    threads: int = 0
    """Compute threads of each model; 0 is every core that it may use."""
    is_baseline: ClassVar[bool] = True
    """Whether Triton's own Python backend serves it."""
    shared: ClassVar[bool] = False
    """Whether one Triton model serves all tasks, and only a restart adds one."""

    def write(
        self,
        folder: Path,
        source: Path,
        fm: str,
        tasks: int,
        *,
        seed: int = 0,
        threads: int = 0,
        fences: Sequence[str] = (),
    ) -> Repository:
        """Make ``folder/repository`` for ``tasks`` tasks on the backbone of the physical FM ``source/<fm>``.

        ``threads``: compute threads of each model; 0 is the deployment's own choice. ``fences``: one a task, where it
        is `fenced`. Raises what `fleet_of` and `make_fleet` raise, `InvalidInput` where ``tasks`` is not positive or
        there are not as many ``fences``.
        """
        if tasks < 1:
            raise InvalidInput(f"{tasks} tasks; at least 1 is needed")
        if len(fences) != (wanted := tasks if self.fenced else 0):
            raise InvalidInput(f"{len(fences)} fences for {tasks} tasks; {self.title} takes {wanted}")
        fleet = fleet_of(source, fm, seed=seed)
        settings = fm_settings(source / fm)
        names = tuple(fleet.name(index) for index in range(tasks))
        made = Repository(
            path=folder / "repository",
            versions=folder / ("fleet" if self.is_baseline else "repository"),
            fleet=fleet,
            backbone=Path(resolve(settings.backbone)),
            device=settings.engines.partition(",")[0],
            threads=threads or self.threads,
            models=(ALL_TASKS,) * tasks if self.shared else names,
            selector=SELECTOR if self.shared else None,
            tasks=names,
            labels=tuple(len(fleet.labels(index)) for index in range(tasks)),
        )
        self._make(made, source, fences)
        return made

    @abstractmethod
    def _make(self, made: Repository, source: Path, fences: Sequence[str]) -> None:
        """Write what ``made`` describes."""

    def make_model(self, made: Repository, index: int, model: Path, fence: str = "") -> None:
        """Make the Triton model of task ``index`` as the folder ``model``, wherever; not for a `shared` deployment."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OnFMplex(Deployment):
    """One physical FM, a vFM for each task; on a CPU an engine for each core, as private models have a thread each."""

    policy: Literal["fair", "fifo"]
    threads: int = PRIVATE_THREADS
    is_baseline: ClassVar[bool] = False

    def _make(self, made: Repository, source: Path, fences: Sequence[str]) -> None:
        ports = max(len(made.tasks) + 1, fm_settings(source / made.fleet.fm).ports)  # one more may be added
        engines = ",".join(["cpu"] * _cores()) if made.device == "cpu" else made.device
        settings = {"policy": self.policy, "threads": str(made.threads), "ports": str(ports), "engines": engines}
        make_fleet(made.path, source, made.fleet.fm, len(made.tasks), seed=made.fleet.seed, settings=settings)

    def make_model(self, made: Repository, index: int, model: Path, fence: str = "") -> None:
        """A vFM."""
        made.fleet.write_vfm(model, index)


@dataclass(frozen=True, kw_only=True)
class Baseline(Deployment):
    """Models for Triton's own Python backend."""

    module: str
    """Of `fmplex_tools.bench.compare.baselines`."""
    queue_delay_us: int | None = QUEUE_DELAY_US
    """Dynamic batching's ``max_queue_delay_microseconds``; None: no dynamic batching."""

    def _write_model(self, model: Path, made: Repository, tasks: tuple[str, ...], labels: int, fence: str) -> None:
        (model / "1").mkdir(parents=True)
        code = (
            f"from fmplex_tools.bench.compare.baselines.{self.module} import TritonPythonModel as TritonPythonModel\n"
        )
        (model / "1" / "model.py").write_text(code, encoding="utf-8")
        # In the way of a cache, which Triton's poll would take for a change of the model, and load it anew.
        (model / "1" / "__pycache__").touch()
        settings = Settings(made.backbone.resolve(), made.versions.resolve(), tasks, made.threads, made.device, fence)
        write_config(model / CONFIG_FILE, self._config(settings, labels))

    def _config(self, settings: Settings, labels: int) -> ModelConfig:
        config: Any = ModelConfig(backend="python", max_batch_size=MAX_BATCH_ROWS)
        for name in (TEXT, SELECTOR) if self.shared else (TEXT,):
            config.input.add(name=name, data_type="TYPE_STRING", dims=[1])
        config.output.add(name=PROBABILITIES, data_type="TYPE_FP32", dims=[labels])
        config.instance_group.add(kind="KIND_CPU", count=1)  # Triton's part; torch is on the device of the settings
        if self.queue_delay_us is not None:
            config.dynamic_batching.SetInParent()
            config.dynamic_batching.max_queue_delay_microseconds = self.queue_delay_us
        for key, value in settings.parameters().items():
            config.parameters[key].string_value = value
        return config


@dataclass(frozen=True, kw_only=True)
class PrivateBackbones(Baseline):
    """For each task a Triton model with a backbone of its own, the LoRA merged."""

    module: str = "private"
    threads: int = PRIVATE_THREADS

    def _make(self, made: Repository, source: Path, fences: Sequence[str]) -> None:
        for index, name in enumerate(made.tasks):
            self.make_model(made, index, made.path / name, fences[index] if fences else "")

    def make_model(self, made: Repository, index: int, model: Path, fence: str = "") -> None:
        """A Python model."""
        task = made.fleet.name(index)
        made.fleet.write_version(made.versions / task / "1", index)
        self._write_model(model, made, (task,), len(made.fleet.labels(index)), fence)


@dataclass(frozen=True, kw_only=True)
class SharedBackbone(Baseline):
    """One Triton model for all tasks; a request names its task."""

    shared: ClassVar[bool] = True

    def _make(self, made: Repository, source: Path, fences: Sequence[str]) -> None:
        for index in range(len(made.tasks)):
            made.fleet.write_version(made.version(index), index)
        self._write_model(made.path / ALL_TASKS, made, made.tasks, max(made.labels), "")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


_ALL: tuple[Deployment, ...] = (
    OnFMplex(name="fmplex", title="FMplex", policy="fair"),
    PrivateBackbones(name="spatial", title="spatial partitioning", fenced=True),
    PrivateBackbones(name="best_effort", title="best-effort co-location"),
    SharedBackbone(name="swapped", title="one at a time, adapters swapped", module="swapped", queue_delay_us=None),
    SharedBackbone(name="peft_mixed", title="PEFT mixed batch", module="peft_mixed"),
    OnFMplex(name="fifo", title="shared FIFO", policy="fifo"),
)
DEPLOYMENTS: Mapping[str, Deployment] = MappingProxyType({deployment.name: deployment for deployment in _ALL})
"""By name, FMplex first."""


def title_of(name: str) -> str:
    """Of a deployment, for people."""
    return DEPLOYMENTS[name].title
