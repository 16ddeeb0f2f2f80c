"""``config.pbtxt`` of a vFM, a bundle or a physical FM: as the registry, the layout and the host read it."""

from __future__ import annotations

import random
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import Refused
from fmplex_backend.host.entries import queue_policy
from fmplex_backend.repository.config import (
    CONFIG_FILE,
    VfmConfig,
    ensemble_config,
    fm_settings,
    is_physical,
    read_config,
    vfm_config,
    write_config,
)
from fmplex_backend.repository.layout import ports_of
from fmplex_tools.bench.faults.mutations import damage_bytes
from fuzz.told import check_told

_POLICY = {
    "weight": "2.5",
    "max_queue_size": "64",
    "timeout_ms": "1000",
    "latency_slo_ms": "50",
    "max_rows_in_flight": "8",
    "rate_limit_rows_per_second": "10",
    "rate_limit_burst_rows": "20",
    "access_tokens": "sha256:" + "0a" * 32,
    "pin_adapter": "true",
}
_FM = {"backbone": "./weights", "dtype": "bf16", "ports": "16", "engines": "cpu,cuda:0", "policy": "drr"}
_PHRASES = (
    b"version_policy { specific { versions: [ 3 ] } }",
    b"version_policy { all { } }",
    b'ensemble_scheduling { step { model_name: "minilm" } }',
    b'input_map { key: "" value: "" }',
    b"[type.googleapis.com/x] { }",
    b'backend: "fmplex"',
    b'name: "vfm"',
    b"data_type: 99",
    b"dims: -1",
    b"max_batch_size: -1",
    b'key: "port99999999999.info"',
    b'"\\377"',
    b"nan",
    b"#",
)


def seeds() -> list[bytes]:
    """Good ones."""
    vfm = ensemble_config("minilm", {"logits": (3, "vector"), "label": (3, "text")}, {"logits": [2], "label": [1]})
    policed = ensemble_config("minilm", {"logits": (3, "vector")}, {"logits": [2]}, parameters=_POLICY)
    policed.version_policy.specific.versions.append(2)
    bundle = ensemble_config("minilm", {"a": (1, "vector"), "b": (2, "info")}, {"a": [-1], "b": [1]})
    fm = ModelConfig(backend="fmplex", max_batch_size=64)
    for key, value in _FM.items():
        fm.parameters[key].string_value = value
    return [text_format.MessageToString(config).encode() for config in (vfm, policed, bundle, fm)]


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, or a line doubled, moved, taken out, or a phrase put in."""
    if chance.random() < 0.5:
        return damage_bytes(data, chance)
    lines = data.split(b"\n")
    place = chance.randrange(len(lines))
    line = lines.pop(place) if chance.random() < 0.5 else lines[place]
    lines.insert(chance.randint(0, len(lines)), chance.choice((line, chance.choice(_PHRASES), line * 2)))
    return b"\n".join(lines)


def check(data: bytes, folder: Path) -> None:
    """Read, or refused; what is read says the same when it is written and read again."""
    place = folder / "vfm"
    place.mkdir(exist_ok=True)
    (place / CONFIG_FILE).write_bytes(data)
    try:
        read = _read(place)
        if read is not None:
            queue_policy(read)
            write_config(place / CONFIG_FILE, read_config(place / CONFIG_FILE))
            assert _read(place) == read
    except Refused as error:
        check_told(error)


def _read(place: Path) -> VfmConfig | None:
    config = read_config(place / CONFIG_FILE)
    if is_physical(config):
        assert fm_settings(place).compute_threads(2) >= 1
    ports = ports_of(config, "minilm")
    assert all(port >= 0 for port in ports)
    read = vfm_config("vfm", config, {"minilm"})
    assert read is None or ports == frozenset(read.ports)
    return read
