"""What physical FMs take on this machine: each is served, asked for some seconds, and looked at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from fmplex_backend.backbones.source import resolve
from fmplex_backend.errors import EngineFailure
from fmplex_backend.scheduling.cost import CostModel
from fmplex_tools.bench.cluster.world import OnDevice
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.meters import ROWS, read
from fmplex_tools.bench.families.measure import Family, families
from fmplex_tools.bench.faults.own_memory import own_bytes

SECONDS = 3.0
VFM = 400_000
"""Bytes of an adapter of rank 8 on query and value and a head, rounded up from what MiniLM's take (docs/results.md)."""
TEXTS = {16: 0.5, 32: 0.3, 64: 0.2}
"""Tokens of a text → how often; other rows are as long as they are found to be."""


def measured(fms: Mapping[str, str], modalities: Mapping[str, str], seed: int) -> tuple[OnDevice, ...]:
    """Of physical FMs by name → backbone. Raises `FMplexError`."""
    with families(fms, modalities, seed) as made:
        return tuple(_look(family, fms[fm], seed) for fm, family in made.items())


def _look(family: Family, backbone: str, seed: int) -> OnDevice:
    with Load(family.arena.url, family.streams, seed=seed) as load:
        load.start()
        time.sleep(SECONDS)
        load.stop()
    counted = read(family.arena)
    rows = sum(counted.value(ROWS, vfm=vfm, label="served") for vfm in family.vfms)
    if not rows:
        raise EngineFailure(f"{family.arena.fm} answered nothing in {SECONDS:g} s")
    tokens = round(counted.value("fmplex_useful_tokens_total") / rows)
    host, *engines = (own_bytes(process.pid) for process in family.processes())
    return OnDevice(
        name=family.arena.fm,
        cost=CostModel(**family.arena.status()["cost_model"]["seconds"]),
        lengths=TEXTS if family.modality == "text" else {tokens: 1.0},
        weights=sum(file.stat().st_size for file in Path(resolve(backbone)).rglob("*.safetensors")),
        replica=host + sum(engines),
        vfm=VFM,
        copy=sum(engines) + VFM,
    )
