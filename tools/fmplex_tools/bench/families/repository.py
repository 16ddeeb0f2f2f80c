"""A repository with a physical FM of each family, and vFMs with random heads on each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.config import CONFIG_FILE, write_config
from fmplex_backend.repository.modalities import SPECS, AudioSpec
from fmplex_backend.repository.packed import head_width
from fmplex_tools.bench.fair.rows import AUDIO_SECONDS
from fmplex_tools.tasks.artifact_writer import write_version
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.heads import Head
from fmplex_tools.tasks.publish import FM_BATCH_ROWS, vfm_ensemble, write_fm

QUEUE = 512


def write_family(repository: Path, fm: str, backbone: str, weights: Sequence[float], seed: int) -> dict[str, float]:
    """The physical FM ``fm`` and a vFM for each of ``weights``: name → weight. Heads tell two labels, at random."""
    write_fm(repository, fm, backbone, "Physical FM of a benchmark.")
    loaded = Backbone(backbone)
    modality, chance = loaded.facts.modality, np.random.default_rng(seed)
    encoder = AudioSpec(seconds=AUDIO_SECONDS) if modality == "audio" else SPECS[modality]()
    artifact = Artifact(kind="classification", backbone=loaded.ref, labels=("no", "yes"), encoder=encoder)
    width, made = head_width(artifact, loaded.facts), {}
    for port, weight in enumerate(weights):
        name = f"{fm}_{port}"
        head = Head(chance.standard_normal((2, width)).astype(np.float32), np.zeros(2, np.float32))
        write_version(repository / name / "1", artifact, head)
        parameters = {"weight": f"{weight:g}", "max_queue_size": str(QUEUE)}
        config = vfm_ensemble(fm, port, artifact, 2, FM_BATCH_ROWS, parameters)
        write_config(repository / name / CONFIG_FILE, config)
        made[name] = weight
    return made
