"""Where things lie in a model repository: kinds, their outputs by name, ports in use, versions on disk."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import NotFound, Refused
from fmplex_backend.repository.artifact import Kind
from fmplex_backend.repository.config import CONFIG_FILE, VfmConfig, is_physical, read_config
from fmplex_backend.repository.poolings import Pooling
from fmplex_backend.repository.sockets import parse_output_name

KIND_SOCKETS: dict[str, dict[str, str]] = {
    "classification": {"logits": "vector", "probabilities": "scores", "label": "text"},
    "multi_label": {"logits": "vector", "probabilities": "scores", "labels": "text"},
    "regression": {"values": "vector"},
    "embedding": {"embedding": "vector"},
    "forecast": {"forecast": "volume", "quantiles": "text"},
    "imputation": {"filled": "matrix"},
    "anomaly": {"anomaly": "vector", "anomaly_scores": "matrix"},
    "token_classification": {"logits": "matrix", "token_scores": "scores", "token_labels": "text"},
}
"""Per kind, the ensemble outputs that ``fmplex task`` gives a vFM and the socket behind each."""


def sockets_of(kind: Kind, pooling: Pooling) -> dict[str, str]:
    """Output name → socket for a vFM of ``kind``; an embedding per token comes out of the matrix socket."""
    if kind == "embedding" and pooling == "none":
        return {"embedding": "matrix"}
    return KIND_SOCKETS[kind]


def socket_dims(kind: Kind, pooling: Pooling, width: int) -> dict[str, list[int]]:
    """Socket → dims of an answer of ``width`` outputs; -1 is a length that varies (tokens, labels given, steps)."""
    if kind == "classification":
        return {"vector": [width], "scores": [width], "text": [1], "info": [1]}
    if kind == "multi_label":
        return {"vector": [width], "scores": [width], "text": [-1], "info": [1]}
    if kind == "token_classification":
        return {"matrix": [-1, width], "scores": [-1], "text": [-1], "info": [1]}
    if kind == "forecast":
        return {"volume": [-1, -1, width], "text": [width], "info": [1]}
    if kind == "imputation":
        return {"matrix": [-1, -1], "info": [1]}
    if kind == "anomaly":
        return {"vector": [1], "matrix": [-1, -1], "info": [1]}
    if kind == "embedding" and pooling == "none":
        return {"matrix": [-1, width], "info": [1]}
    return {"vector": [width], "info": [1]}


def model_dirs(repository: Path) -> dict[str, Path]:
    """Name → folder of every model, in name order. Raises `NotFound` where there is no such repository."""
    if not repository.is_dir():
        raise NotFound(f"no model repository at {repository}; `fmplex demo build` makes one")
    return {
        path.name: path
        for path in sorted(repository.iterdir())
        if path.is_dir() and not path.name.startswith(".") and (path / CONFIG_FILE).is_file()
    }


def versions(model_dir: Path) -> list[int]:
    """Version numbers on disk, ascending, by Triton's rule: folders with a number for a name, 0 and signs excluded."""
    return sorted(
        int(path.name)
        for path in model_dir.iterdir()
        if path.name.isascii() and path.name.isdigit() and not path.name.startswith("0") and path.is_dir()
    )


def version_to_serve(config: VfmConfig, folder: Path) -> int | None:
    """Triton's own choice: the pinned version, else the highest number on disk; None where there is none."""
    return config.pinned_version or max(versions(folder), default=None)


def physical_fms(repository: Path) -> list[str]:
    """Names of the physical FMs; folders whose configuration cannot be read are left out."""
    found = []
    for name, path in model_dirs(repository).items():
        try:
            if is_physical(read_config(path / CONFIG_FILE)):
                found.append(name)
        except Refused:
            continue
    return found


def ports_of(config: ModelConfig, fm: str) -> frozenset[int]:
    """Ports of ``fm`` that an ensemble maps, whatever else may be wrong with it."""
    keys = (key for step in config.ensemble_scheduling.step if step.model_name == fm for key in step.output_map)
    return frozenset(socket[0] for key in keys if (socket := parse_output_name(key)) is not None)


def ports_in_use(repository: Path, fm: str) -> dict[int, list[str]]:
    """Port of ``fm`` → names of the ensembles that map it, readable or broken elsewhere alike."""
    used: dict[int, list[str]] = {}
    for name, path in model_dirs(repository).items():
        try:
            config = read_config(path / CONFIG_FILE)
        except Refused:
            continue
        for port in ports_of(config, fm):
            used.setdefault(port, []).append(name)
    return used


def lowest_free_port(repository: Path, fm: str, ports: int) -> int:
    """The lowest port of ``fm`` that no ensemble maps. Raises `Refused` where all ``ports`` are taken."""
    used = ports_in_use(repository, fm)
    for port in range(ports):
        if port not in used:
            return port
    raise Refused(f"physical FM {fm!r}: all {ports} ports are taken; raise its parameter 'ports'")
