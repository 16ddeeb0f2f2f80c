"""Random adapters in PEFT's own models and, the same ones, in our engine: what both sides of a comparison run."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.engine.worker import Worker
from fmplex_backend.errors import Refused
from fmplex_backend.messages import LoadGeneration, Tokens
from fmplex_backend.repository.artifact import ADAPTER_DIR, ARTIFACT_FILE, Artifact, BackboneRef
from fmplex_backend.repository.packed import pack, read_version

MAX_RANK = 64
BARE = 0
"""Number of the generation without an adapter; those with one are 1, 2, …"""
MORE_BARE = 1_000_000
"""Generations without an adapter from here on, for batches of many bare vFMs."""
NOISE = 0.02


def name_of(number: int) -> str:
    """PEFT's name of an adapter: a part of no other's and of no layer's, since PEFT looks for it inside of names."""
    return f"adapter{number:05d}"


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA: of ``rank``, on the layers whose names end in ``targets``; without any, on all but the pooler."""

    rank: int
    targets: tuple[str, ...] = ()

    def layers(self, backbone: Backbone) -> list[str]:
        """Full names of the layers it touches. Raises `Refused` where there is none."""
        names = [name for name in backbone.facts.layers if not name.startswith("pooler")]
        found = [name for name in names if not self.targets or name.rpartition(".")[2] in self.targets]
        if not found:
            raise Refused(f"backbone {backbone.facts.spec!r} has no linear layer named {' or '.join(self.targets)}")
        return found


def peft_model(backbone: Backbone, spec: AdapterSpec, count: int, seed: int = 0) -> Any:
    """A copy of the backbone with ``count`` random adapters, named by `name_of`, in the backbone's dtype."""
    from peft import LoraConfig

    config = LoraConfig(r=spec.rank, lora_alpha=2 * spec.rank, target_modules=spec.layers(backbone))
    return peft_model_of(backbone, [config] * count, seed)


def peft_model_of(backbone: Backbone, configs: Sequence[Any], seed: int = 0) -> Any:
    """A copy of the backbone with a random adapter for each of PEFT's ``configs``, all of one type."""
    from peft import get_peft_model

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        # Without the cast, PEFT would run its part of a bf16 backbone in fp32: slower than it need be.
        model = get_peft_model(
            copy.deepcopy(backbone.model), configs[0], adapter_name=name_of(0), autocast_adapter_dtype=False
        )
        for number, config in enumerate(configs[1:], start=1):
            model.add_adapter(name_of(number), config, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if "lora_A" not in name and ("lora_" in name or "ia3_" in name):
                parameter.data += NOISE * torch.randn_like(parameter)  # as they are made, they would do nothing
    model.eval().requires_grad_(False)
    return model


def peft_forward(model: Any, inputs: dict[str, torch.Tensor], adapters: Sequence[int]) -> torch.Tensor:
    """Hidden states of a mixed batch by PEFT's own way: ``adapters[i]`` answers row i."""
    hidden: torch.Tensor = model(**inputs, adapter_names=[name_of(number) for number in adapters]).last_hidden_state
    return hidden


def load_peft(worker: Worker, model: Any, folder: Path, first: int = BARE + 1) -> list[int]:
    """Save the adapters of ``model`` as PEFT does, read, pack and load them; their generations, from ``first``.

    Their heads are the first position's vector itself, so that all that differs is the backbone's part. Raises
    `Refused` where one is not served.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Embeddings are never trained here; "auto" would ask the hub for the base model's vocabulary.
        model.save_pretrained(str(folder / "peft"), safe_serialization=True, save_embedding_layers=False)
    generations: list[int] = []
    for name in model.peft_config:
        version = folder / f"vfm{first + len(generations)}" / "1"
        version.mkdir(parents=True)
        (folder / "peft" / name).rename(version / ADAPTER_DIR)
        generations.append(first + len(generations))
        load_version(worker, version, generations[-1], adapter=True)
    return generations


def load_bare(worker: Worker, folder: Path, number: int = BARE) -> int:
    """Load a generation without an adapter."""
    version = folder / f"bare{number}" / "1"
    version.mkdir(parents=True)
    load_version(worker, version, number, adapter=False)
    return number


def load_version(worker: Worker, version: Path, number: int, *, adapter: bool) -> None:
    """Complete ``version`` by its ``vfm.json`` and load it. Raises `Refused`."""
    facts = worker.backbone.facts
    artifact = Artifact(
        kind="embedding",
        backbone=BackboneRef(name=facts.spec, fingerprint=facts.fingerprint),
        pooling="cls",
        head="identity",
        adapter=adapter,
    )
    (version / ARTIFACT_FILE).write_text(artifact.model_dump_json(), encoding="utf-8")
    packed = version.parent / "packed.safetensors"
    pack(read_version(version, version.parent, facts, MAX_RANK), packed)
    if (error := worker.load(LoadGeneration(number, version.parent.name, 1, str(packed))).error) is not None:
        raise Refused(f"the engine does not take {version.parent.name!r}: {error}")


def collated(backbone: Backbone, rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    """The backbone's inputs for these rows, on its device."""
    device = next(backbone.model.parameters()).device
    return {name: tensor.to(device) for name, tensor in backbone.collate(list(rows)).items()}


def random_rows(model: nn.Module, rows: int, tokens: int, seed: int = 0) -> list[Tokens]:
    """``rows`` rows of ``tokens`` random token ids each, as the host sends them."""
    size = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    ids = np.random.default_rng(seed).integers(0, size, (rows, tokens), dtype=np.int32)
    return [{"input_ids": row} for row in ids]
