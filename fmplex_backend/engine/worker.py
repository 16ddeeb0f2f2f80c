"""The engine proper: one backbone, the adapters and heads of the live generations, one batch at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from fmplex_backend.adapters.bank import AdapterBank, AdapterTensors
from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.heads.kinds import answers
from fmplex_backend.heads.projections import Projection, linear, transformers_head
from fmplex_backend.messages import BatchDone, GenerationLoaded, GroupAnswer, LoadGeneration, RunBatch
from fmplex_backend.repository.artifact import Artifact


@dataclass(frozen=True)
class Generation:
    """A vFM's loaded state."""

    vfm: str
    artifact: Artifact
    projection: Projection
    has_adapter: bool


class Worker:
    """Loads generations and runs batches on one device. Not thread-safe."""

    def __init__(self, backbone: Backbone, device: str, max_adapters: int) -> None:
        self.backbone = backbone
        self._device = device
        self._max_adapters = max_adapters
        dtype = next(backbone.model.parameters()).dtype
        self._bank = AdapterBank(backbone.model, dtype, device)
        self._generations: dict[int, Generation] = {}

    def load(self, message: LoadGeneration) -> GenerationLoaded:
        """Take a packed generation; one that cannot be served leaves nothing behind."""
        try:
            n_bytes = self._load(message)
        except FMplexError as error:
            return GenerationLoaded(message.generation, str(error))
        except Exception as error:  # out of memory, a file gone, a defect: it is refused, the others go on
            return GenerationLoaded(message.generation, f"it cannot be loaded: {type(error).__name__}: {error}")
        return GenerationLoaded(message.generation, None, n_bytes)

    def _load(self, message: LoadGeneration) -> int:
        tables, artifact = _read(message.path)
        adapters = sum(g.has_adapter for g in self._generations.values())
        if artifact.adapter and adapters >= self._max_adapters:
            raise Refused(f"all {self._max_adapters} adapters are taken (the physical FM's max_adapters)")
        parameters = {name: tensor.to(self._device) for name, tensor in tables["head"].items()}
        if artifact.head == "transformers":
            projection: Projection = transformers_head(artifact, parameters, self.backbone.model)
        else:
            projection = linear(artifact, parameters)
        n_bytes = sum(tensor.numel() * 4 for tensor in parameters.values())
        if artifact.adapter:
            adapter = AdapterTensors(tables["lora_A"], tables["lora_B"], self._bias_delta(tables))
            try:
                self._bank.load(message.generation, adapter)
            except Exception:
                self._bank.drop(message.generation)
                raise
            n_bytes += adapter.n_bytes
        self._generations[message.generation] = Generation(message.vfm, artifact, projection, artifact.adapter)
        return n_bytes

    def _bias_delta(self, tables: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """What each module's output gains: LoRA's own bias, and a trained bias less the backbone's."""
        delta = dict(tables["bias_delta"])
        for name, bias in tables["bias"].items():
            own = self.backbone.model.get_submodule(name).bias.detach().float().cpu()  # type: ignore[operator]
            delta[name] = delta.get(name, torch.zeros_like(bias)) + (bias - own)
        return {name: tensor for name, tensor in delta.items() if tensor.any()}

    def drop(self, generation: int) -> None:
        """Forget a generation."""
        if self._generations.pop(generation).has_adapter:
            self._bank.drop(generation)

    def close(self) -> None:
        """Take every hook off the backbone, which may go on without this worker."""
        self._bank.close()

    def run(self, message: RunBatch) -> BatchDone:
        """Run one batch. Every row is answered in exactly one group, with an answer or with an error."""
        start = time.perf_counter()
        keys = [key if self._has_adapter(key) else None for key in message.generations]
        with torch.inference_mode():
            inputs = self.backbone.collate(message.rows)
            with self._bank.batch(keys):
                features = self.backbone.forward(inputs)
            lengths = features.mask.sum(1).tolist()
            members: dict[int, list[int]] = {}
            for row, key in enumerate(message.generations):
                members.setdefault(key, []).append(row)
            groups = [self._answer(key, rows, features, lengths) for key, rows in members.items()]
        return BatchDone(message.batch, groups, time.perf_counter() - start)

    def _has_adapter(self, key: int) -> bool:
        return key in self._generations and self._generations[key].has_adapter

    def _answer(self, key: int, rows: list[int], features: Features, lengths: list[int]) -> GroupAnswer:
        generation = self._generations.get(key)
        if generation is None:
            return GroupAnswer(key, rows, {}, dict.fromkeys(rows, f"generation {key} is not in this engine"))
        index = torch.tensor(rows, device=self._device)
        try:
            raw = generation.projection(features, index).float().cpu()
        except Exception as error:  # a head that fails takes its own rows with it, not its neighbours'
            reason = f"vFM {generation.vfm!r}: its head failed: {type(error).__name__}: {error}"
            return GroupAnswer(key, rows, {}, dict.fromkeys(rows, reason))
        columns, finite = answers(raw, [lengths[row] for row in rows], generation.artifact)
        reason = f"vFM {generation.vfm!r}: its answer is not finite"
        errors = {row: reason for row, good in zip(rows, finite, strict=True) if not good}
        return GroupAnswer(key, rows, columns, errors)


def _read(path: str) -> tuple[dict[str, dict[str, Tensor]], Artifact]:
    tables: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("lora_A", "lora_B", "bias_delta", "bias", "head")}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, _, name = key.partition("/")
            tables[kind][name] = file.get_tensor(key)
        return tables, Artifact.model_validate_json(file.metadata()["artifact"])
