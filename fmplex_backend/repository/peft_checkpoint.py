"""A LoRA checkpoint as PEFT writes it, checked against the backbone it is to plug into.

Format: ``adapter_config.json`` and ``adapter_model.safetensors`` of ``PeftModel.save_pretrained`` (PEFT 0.4 to 0.21).
Tensors are named ``base_model.model.<module>.lora_A.weight`` and so on, where ``<module>`` has the prefix of the task
class (``bert.``) in front when the adapter was trained on one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.config import explain
from fmplex_backend.repository.safe_files import read_json, read_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_QUANTIFIER = re.compile(r"[*+?{]")


@dataclass(frozen=True)
class LoraWeights:
    """One adapter, ready to be added: ``y += B(A x)`` and ``y += bias - own bias`` per module of the backbone."""

    a: dict[str, Array]
    """Layer → [rank, in], fp32."""
    b: dict[str, Array]
    """Layer → [out, rank], fp32, PEFT's scaling multiplied in."""
    bias_delta: dict[str, Array] = field(default_factory=dict)
    """Layer → [out], fp32: what `lora_B` itself adds (``lora_bias``), scaled."""
    bias: dict[str, Array] = field(default_factory=dict)
    """Module → [size], fp32: a trained bias that takes the place of the backbone's own."""
    head: dict[str, Array] = field(default_factory=dict)
    """Parameters outside the backbone that PEFT saved along (``modules_to_save``), e.g. ``classifier.weight``."""

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((a.shape[0] for a in self.a.values()), default=0)


class LoraConfigFile(BaseModel):
    """The parts of ``adapter_config.json`` that decide what the weights mean; the rest is about training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: str
    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
    init_lora_weights: Any = True
    layer_replication: Any = None
    trainable_token_indices: Any = None
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    task_type: str | None = None

    def refuse_unsupported(self) -> None:
        """Raise `Refused` for what would be answered wrongly if it were ignored."""
        if self.peft_type != "LORA":
            raise Refused(f"{CONFIG}: peft_type is {self.peft_type!r}; 'LORA' is what is served")
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights.split("_")[0] in _CHANGES_BASE:
            raise Refused(
                f"{CONFIG}: init_lora_weights {self.init_lora_weights!r} changed the backbone's own weights; save it "
                "as plain LoRA with save_pretrained(…, path_initial_model_for_weight_conversion=…)"
            )
        for name in ("use_dora", "layer_replication", "trainable_token_indices", "target_parameters"):
            if getattr(self, name):
                raise Refused(f"{CONFIG}: {name} is set, which is not served; train without it")
        if self.alora_invocation_tokens:
            raise Refused(f"{CONFIG}: alora_invocation_tokens is set, which is not served; train without it")

    def scaling(self, layer: str, rank: int) -> float:
        """PEFT's factor on ``B(A x)`` for one layer, ``alpha / r`` or, rank-stabilized, ``alpha / sqrt(r)``."""
        alpha = next((v for k, v in self.alpha_pattern.items() if _names(k, layer)), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, layer: str) -> int:
        """The rank that the configuration gives one layer."""
        return next((v for k, v in self.rank_pattern.items() if _names(k, layer)), self.r)


_CHANGES_BASE = {"pissa", "olora", "corda", "loftq", "lora"}  # "lora" is LoRA-GA


def _names(pattern: str, layer: str) -> bool:
    """PEFT's rule for ``rank_pattern`` and ``alpha_pattern``: a regular expression for the end of the layer's name."""
    if _QUANTIFIER.search(pattern) or len(pattern) > 256:
        raise Refused(f"{CONFIG}: pattern {pattern!r} has a quantifier; name the layers one by one")
    try:
        return re.match(rf"(.*\.)?({pattern})$", layer) is not None
    except re.error as error:
        raise Refused(f"{CONFIG}: pattern {pattern!r} is not a regular expression: {error}") from None


def read_checkpoint(folder: Path, root: Path, facts: BackboneFacts, max_rank: int) -> LoraWeights:
    """Read and check ``folder``; ``root`` is the vFM's folder, which nothing may lead out of.

    Raises `Refused` naming the tensor, the value and what would be right.
    """
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise Refused("adapter_model.bin is a pickle and is never read; save with safe_serialization=True")
    try:
        config = LoraConfigFile.model_validate(read_json(folder / CONFIG, root))
    except ValidationError as error:
        raise Refused(f"{CONFIG}: {explain(error, LoraConfigFile, 'key')}") from None
    config.refuse_unsupported()
    weights = _sort(read_tensors(folder / WEIGHTS, root), facts)
    return _check(weights, config, facts, max_rank)


@dataclass
class _Raw:
    a: dict[str, Array] = field(default_factory=dict)
    b: dict[str, Array] = field(default_factory=dict)
    b_bias: dict[str, Array] = field(default_factory=dict)
    bias: dict[str, Array] = field(default_factory=dict)
    head: dict[str, Array] = field(default_factory=dict)


def _sort(tensors: dict[str, Array], facts: BackboneFacts) -> _Raw:
    """Tell apart LoRA weights, biases of the backbone and parameters of the head by their names."""
    raw = _Raw()
    for key, array in tensors.items():
        if not key.startswith(_PREFIX):
            raise Refused(f"{WEIGHTS}: tensor {key!r} does not start with {_PREFIX!r}, so PEFT did not write it")
        name = key.removeprefix(_PREFIX)
        for suffix, table in ((".lora_A.weight", raw.a), (".lora_B.weight", raw.b), (".lora_B.bias", raw.b_bias)):
            if name.endswith(suffix):
                table[_layer(name.removesuffix(suffix), facts)] = array
                break
        else:
            _sort_other(name, array, facts, raw)
    return raw


def _sort_other(name: str, array: Array, facts: BackboneFacts, raw: _Raw) -> None:
    if ".original_module." in name:
        return  # PEFT saves it with bias="all"; what answers is the copy under modules_to_save
    module, _, parameter = name.rpartition(".")
    module = _strip(module.removesuffix(".base_layer"), facts)
    if parameter == "bias" and module in facts.biases:
        raw.bias[module] = array
    elif "lora_" in name or _is_backbone(name, facts):
        raise Refused(
            f"{WEIGHTS}: tensor {name!r} changes the shared backbone itself; a vFM may bring LoRA on linear layers, "
            "biases, and its own head"
        )
    else:
        raw.head[name.replace(".modules_to_save.", ".")] = array


def _strip(module: str, facts: BackboneFacts) -> str:
    return module.removeprefix(f"{facts.prefix}.") if facts.prefix else module


def _is_backbone(name: str, facts: BackboneFacts) -> bool:
    first = _strip(name, facts)
    return first != name or first.split(".")[0] in {layer.split(".")[0] for layer in (*facts.layers, *facts.biases)}


def _layer(module: str, facts: BackboneFacts) -> str:
    name = _strip(module, facts)
    if name not in facts.layers:
        raise Refused(
            f"{WEIGHTS}: there is no linear layer {name!r} in backbone {facts.spec!r}; "
            f"it has {len(facts.layers)}, the first is {next(iter(facts.layers), None)!r}"
        )
    return name


def _check(raw: _Raw, config: LoraConfigFile, facts: BackboneFacts, max_rank: int) -> LoraWeights:
    if not raw.a and not raw.bias:
        raise Refused(f"{WEIGHTS}: holds no LoRA weights")
    if unpaired := (raw.a.keys() ^ raw.b.keys()) | (raw.b_bias.keys() - raw.b.keys()):
        raise Refused(f"{WEIGHTS}: layer {min(unpaired)!r} has only one of lora_A and lora_B")
    scaled: dict[str, Array] = {}
    bias_delta: dict[str, Array] = {}
    for layer, a in raw.a.items():
        rank = _check_shapes(layer, a, raw.b[layer], config, facts, max_rank)
        scaling = np.float32(config.scaling(layer, rank))
        scaled[layer] = raw.b[layer] * scaling
        if layer in raw.b_bias:
            _expect(f"{layer}.lora_B.bias", raw.b_bias[layer], (facts.layers[layer][0],))
            bias_delta[layer] = raw.b_bias[layer] * scaling
    for module, bias in raw.bias.items():
        _expect(f"{module}.bias", bias, (facts.biases[module],))
    return LoraWeights(raw.a, scaled, bias_delta, raw.bias, raw.head)


def _check_shapes(layer: str, a: Array, b: Array, config: LoraConfigFile, facts: BackboneFacts, max_rank: int) -> int:
    out, width = facts.layers[layer]
    rank = config.rank(layer)
    if rank > max_rank:
        raise Refused(f"adapter rank {rank} of layer {layer!r} exceeds the bank's {max_rank} (max_adapter_rank)")
    _expect(f"{layer}.lora_A.weight", a, (rank, width))
    _expect(f"{layer}.lora_B.weight", b, (out, rank))
    return rank


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise Refused(f"{WEIGHTS}: {name} has shape {list(array.shape)}; with this backbone and r it is {list(shape)}")
