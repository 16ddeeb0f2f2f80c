"""A fleet: any number of small random vFMs on one physical FM, made in milliseconds each, without torch.

Every version of every vFM has weights of its own, and the same ones whenever it is made: they are drawn from
``(seed, index of the vFM, version)``. The weights are large, so that an answer tells which of them gave it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.source import fingerprint, resolve
from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.repository.artifact import ADAPTER_DIR, ARTIFACT_FILE, HEAD_FILE, Artifact, BackboneRef
from fmplex_backend.repository.config import (
    CONFIG_FILE,
    FMSettings,
    fm_settings,
    parameters_of,
    read_config,
    write_config,
)
from fmplex_backend.repository.peft_checkpoint import CONFIG as ADAPTER_CONFIG
from fmplex_backend.repository.peft_checkpoint import WEIGHTS as ADAPTER_WEIGHTS
from fmplex_tools.tasks.publish import vfm_ensemble

TARGETS = ("query", "value")
LABELS = ("red", "green", "blue", "white", "black")
B_STD = 0.05
"""Of ``lora_B``, which PEFT scales by ``lora_alpha / r`` = 2; ``lora_A`` keeps the length of its input."""
HEAD_STD = 0.3


@dataclass(frozen=True)
class Fleet:
    """What the vFMs of a fleet have in common, and how each is written."""

    fm: str
    backbone: BackboneRef
    hidden: int
    layers: Mapping[str, tuple[int, int]]
    """Linear layers that the adapters touch: name → (out, in). Empty: heads alone."""
    rank: int
    seed: int
    prefix: str
    max_batch_size: int
    """That of the physical FM."""

    def name(self, index: int) -> str:
        """``vfm0017``, or with a longer number from 10,000 on."""
        return f"{self.prefix}{index:04d}"

    def labels(self, index: int) -> tuple[str, ...]:
        """2 to 5 of them, by turns; the same for all versions of a vFM."""
        return LABELS[: 2 + index % (len(LABELS) - 1)]

    def artifact(self, index: int, version: int = 1) -> Artifact:
        """The ``vfm.json`` of a version."""
        return Artifact(
            kind="classification",
            backbone=self.backbone,
            labels=self.labels(index),
            adapter=bool(self.layers),
            source=f"random weights: seed {self.seed}, vFM {index}, version {version}",
        )

    def write_version(self, folder: Path, index: int, version: int = 1) -> None:
        """Make the version directory ``folder``, which must not exist."""
        folder.mkdir(parents=True)
        chance = np.random.default_rng([self.seed, index, version])
        width = len(self.labels(index))
        head = {
            "weight": chance.standard_normal((width, self.hidden), np.float32) * np.float32(HEAD_STD),
            "bias": chance.standard_normal(width, np.float32),
        }
        save_file(head, folder / HEAD_FILE)
        if self.layers:
            self._write_adapter(folder / ADAPTER_DIR, chance)
        (folder / ARTIFACT_FILE).write_text(self.artifact(index, version).model_dump_json(indent=2), encoding="utf-8")

    def _write_adapter(self, folder: Path, chance: np.random.Generator) -> None:
        folder.mkdir()
        tensors: dict[str, Array] = {}
        for layer, (out, width) in self.layers.items():
            a = chance.standard_normal((self.rank, width), np.float32) * np.float32(1 / math.sqrt(width))
            b = chance.standard_normal((out, self.rank), np.float32) * np.float32(B_STD)
            tensors[f"base_model.model.{layer}.lora_A.weight"] = a
            tensors[f"base_model.model.{layer}.lora_B.weight"] = b
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": self.backbone.name,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": 2 * self.rank,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": sorted(self.layers),
            "task_type": "FEATURE_EXTRACTION",
        }
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    def write_vfm(
        self,
        folder: Path,
        index: int,
        versions: Iterable[int] = (1,),
        *,
        port: int | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        """Make the vFM's whole folder, which must not exist; the port is ``index`` unless given."""
        for version in versions:
            self.write_version(folder / str(version), index, version)
        self.write_config(folder, index, port=index if port is None else port, parameters=parameters)

    def write_config(self, folder: Path, index: int, *, port: int, parameters: Mapping[str, str] | None = None) -> None:
        """Its ``config.pbtxt`` alone."""
        artifact, width = self.artifact(index), len(self.labels(index))
        config = vfm_ensemble(self.fm, port, artifact, width, self.max_batch_size, dict(parameters or {}))
        write_config(folder / CONFIG_FILE, config)


def fleet_of(
    source: Path,
    fm: str,
    *,
    adapter: bool = True,
    rank: int = 8,
    targets: tuple[str, ...] = TARGETS,
    seed: int = 0,
    prefix: str = "vfm",
) -> Fleet:
    """A fleet for the physical FM ``source/<fm>``; nothing is written.

    Raises `NotFound` where there is no such FM or backbone, `InvalidInput` where no layer has a name of ``targets``.
    """
    settings = _settings(source, fm)
    folder = resolve(settings.backbone)
    if not isinstance(folder, Path):
        raise Refused(f"backbone {settings.backbone!r}: a fleet needs its files in a folder or a package, not a hub")
    layers = linear_layers(folder, targets) if adapter else {}
    return Fleet(
        fm=fm,
        backbone=BackboneRef(name=settings.backbone, fingerprint=fingerprint(folder)),
        hidden=int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]),
        layers=layers,
        rank=rank,
        seed=seed,
        prefix=prefix,
        max_batch_size=read_config(source / fm / CONFIG_FILE).max_batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class FleetBase:
    """What everything has in common that is tried with a fleet."""

    source: Path
    """Repository with the physical FM."""
    fm: str = "minilm"
    rank: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FleetPlan(FleetBase):
    """What all that is measured with a fleet has in common."""

    seconds: float = 10.0
    slots: int = 64
    threads: int = 0


def make_fleet(
    repository: Path,
    source: Path,
    fm: str,
    count: int,
    *,
    adapter: bool = True,
    rank: int = 8,
    targets: tuple[str, ...] = TARGETS,
    seed: int = 0,
    prefix: str = "vfm",
    settings: Mapping[str, str] = {},
) -> list[str]:
    """Make ``repository/<fm>`` and ``count`` vFMs on its ports 0, 1 …; their names.

    The physical FM is that of ``source``, with ``settings`` among its parameters. Each vFM classifies into 2 to 5
    labels with a LoRA of ``rank`` on the layers named ``targets`` (with ``adapter=False``: a head alone). Raises what
    `fleet_of` raises, `Refused` where the physical FM does not take ``settings``, and `InvalidInput` where it has fewer
    ports than ``count``.
    """
    fleet = fleet_of(source, fm, adapter=adapter, rank=rank, targets=targets, seed=seed, prefix=prefix)
    taken = copy_fm(repository, source, fm, settings)
    if count > taken.ports:
        raise InvalidInput(f"{count} vFMs on physical FM {fm!r}, which has {taken.ports} ports (its parameter 'ports')")
    for index in range(count):
        fleet.write_vfm(repository / fleet.name(index), index)
    return [fleet.name(index) for index in range(count)]


def copy_fm(repository: Path, source: Path, fm: str, settings: Mapping[str, str]) -> FMSettings:
    """Make ``repository/<fm>`` like ``source/<fm>``, with ``settings`` among its parameters; what it then has.

    A backbone inside the FM's own folder is not copied but named by its place. Raises `NotFound` or `Refused`.
    """
    located = _settings(source, fm)
    config = read_config(source / fm / CONFIG_FILE)
    config.ClearField("name")
    for key, value in {"backbone": located.backbone, **settings}.items():
        config.parameters[key].string_value = value
    taken = FMSettings.parse(parameters_of(config), f"physical FM {fm!r}")
    (repository / fm / "1").mkdir(parents=True, exist_ok=True)  # Triton wants a version folder, if an empty one
    write_config(repository / fm / CONFIG_FILE, config)
    return taken


def _settings(source: Path, fm: str) -> FMSettings:
    if not (source / fm / CONFIG_FILE).is_file():
        raise NotFound(f"{source} has no physical FM {fm!r}; `fmplex demo build` makes the demo's")
    return fm_settings(source / fm)


def linear_layers(folder: Path, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Layers of the backbone in ``folder`` whose name ends with one of ``targets``, as PEFT would choose them.

    Name → (out, in), by the headers of its safetensors. Raises `InvalidInput` where there is none.
    """
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes |= {key: tensor["shape"] for key, tensor in _header(file).items() if key != "__metadata__"}
    modules = {key.removesuffix(".weight"): shape for key, shape in shapes.items() if key.endswith(".weight")}
    found = {
        name: (shape[0], shape[1])
        for name, shape in sorted(modules.items())
        if len(shape) == 2 and any(f".{name}".endswith(f".{target}") for target in targets)
    }
    if not found:
        raise InvalidInput(f"backbone {folder} has no layer named {' or '.join(map(repr, targets))}")
    return found


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, dict[str, list[int]]] = json.loads(stream.read(size))
    return header
