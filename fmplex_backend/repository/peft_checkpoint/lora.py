"""LoRA, rank-stabilized LoRA and DoRA.

What PEFT's forward does in evaluation (``tuners/lora/layer.py``, ``variants.py``, ``dora.py``), W and c the layer's
weight and bias, s the scaling (``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``):

- LoRA: ``y = W x + c + s·B (A x)``; with ``lora_bias``, B has a bias of its own, scaled with it.
- DoRA: with ``m = magnitude / ‖W + s·B A‖``, the 2-norm of each row of that sum, [out], taken anew from the weights
  and not saved: ``y = m ⊙ (W x + s·B (A x)) + c``. The bias is not scaled, also where it was trained. PEFT refuses
  ``lora_bias`` with DoRA.
- A bias that was trained along (``bias="all"`` or ``"lora_only"``) takes the place of the layer's own.

DoRA's magnitude is saved as ``<module>.lora_magnitude_vector`` by every version of PEFT, though inside the model it is
``….lora_magnitude_vector.weight`` since 0.11; both names are read. ``fan_in_fan_out`` says how the *backbone* stores
W; on linear layers PEFT itself turns it off, so it means nothing here.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint.kind import CONFIG, WEIGHTS, AdapterWeights, CheckpointConfig, expect
from fmplex_backend.repository.peft_checkpoint.names import tell_apart

_SUFFIXES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
}
_QUANTIFIER = re.compile(r"[*+?{]")
_CHANGES_BASE = {"pissa", "olora", "corda", "loftq", "lora"}  # "lora" is LoRA-GA
_NOT_SERVED = (
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "monteclora_config",
    "kasa_config",
)


_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraConfigFile(CheckpointConfig):
    """``adapter_config.json`` of a LoRA checkpoint."""

    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, _Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, _Alpha] = Field(default_factory=dict)
    init_lora_weights: Any = True
    layer_replication: Any = None
    trainable_token_indices: Any = None
    target_parameters: Any = None
    alora_invocation_tokens: Any = None
    use_qalora: Any = None
    use_bdlora: Any = None
    arrow_config: Any = None
    monteclora_config: Any = None
    kasa_config: Any = None

    def check(self, facts: BackboneFacts) -> None:
        """See `CheckpointConfig`."""
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights.split("_")[0] in _CHANGES_BASE:
            raise Refused(
                f"{CONFIG}: init_lora_weights {self.init_lora_weights!r} changed the backbone's own weights; save it "
                "as plain LoRA with save_pretrained(…, path_initial_model_for_weight_conversion=…)"
            )
        for name in _NOT_SERVED:
            if getattr(self, name):
                raise Refused(f"{CONFIG}: {name} is set, which is not served; train without it")

    def scaling(self, layer: str, rank: int) -> float:
        """PEFT's factor on ``B(A x)`` for one layer, ``alpha / r`` or, rank-stabilized, ``alpha / sqrt(r)``."""
        alpha = next((v for k, v in self.alpha_pattern.items() if _names(k, layer)), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, layer: str) -> int:
        """The rank that the configuration gives one layer."""
        return next((v for k, v in self.rank_pattern.items() if _names(k, layer)), self.r)

    def read(self, tensors: dict[str, Array], facts: BackboneFacts, max_rank: int) -> AdapterWeights:
        """See `CheckpointConfig`."""
        found = tell_apart(tensors, _SUFFIXES, facts)
        a, b, b_bias = (found.parts[name] for name in ("lora_A", "lora_B", "lora_B.bias"))
        if not a and not b and not found.bias:
            raise Refused(f"{WEIGHTS}: holds no LoRA weights")
        if unpaired := (a.keys() ^ b.keys()) | (b_bias.keys() - b.keys()):
            raise Refused(f"{WEIGHTS}: layer {min(unpaired)!r} has only one of lora_A and lora_B")
        scaled: dict[str, Array] = {}
        bias_delta: dict[str, Array] = {}
        for layer in a:
            rank = self._check_shapes(layer, a[layer], b[layer], facts, max_rank)
            scaled[layer] = self._scaled(layer, rank, b[layer])
            if layer in b_bias:
                expect(f"{layer}.lora_B.bias", b_bias[layer], (facts.layers[layer][0],))
                bias_delta[layer] = self._scaled(layer, rank, b_bias[layer])
        for module, bias in found.bias.items():
            expect(f"{module}.bias", bias, (facts.biases[module],))
        magnitude = found.parts["lora_magnitude_vector"]
        self._check_dora(magnitude, a, b_bias, facts)
        return AdapterWeights(
            a, scaled, bias_delta, found.bias, found.head, magnitude=magnitude, task_type=self.task_type
        )

    def _scaled(self, layer: str, rank: int, weights: Array) -> Array:
        scaling = self.scaling(layer, rank)
        with np.errstate(over="ignore"):
            scaled = (weights * scaling).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise Refused(f"{CONFIG}: lora_alpha scales layer {layer!r} by {scaling:g}, beyond what fp32 holds")
        return scaled

    def _check_shapes(self, layer: str, a: Array, b: Array, facts: BackboneFacts, max_rank: int) -> int:
        out, width = facts.layers[layer]
        rank = self.rank(layer)
        if rank > max_rank:
            raise Refused(f"adapter rank {rank} of layer {layer!r} exceeds the bank's {max_rank} (max_adapter_rank)")
        expect(f"{layer}.lora_A.weight", a, (rank, width))
        expect(f"{layer}.lora_B.weight", b, (out, rank))
        return rank

    def _check_dora(
        self, magnitude: dict[str, Array], a: dict[str, Array], b_bias: dict[str, Array], facts: BackboneFacts
    ) -> None:
        if not self.use_dora:
            if magnitude:
                raise Refused(
                    f"{WEIGHTS}: layer {min(magnitude)!r} has a lora_magnitude_vector, which PEFT ignores where "
                    f"{CONFIG} does not say use_dora; set use_dora if it was trained with it"
                )
            return
        if b_bias:
            raise Refused(
                f"{CONFIG}: use_dora is set, but layer {min(b_bias)!r} has a lora_B.bias; PEFT has no DoRA "
                "with lora_bias, so what it means is not defined"
            )
        for layer in sorted(a.keys() ^ magnitude.keys()):
            lacks = "no lora_magnitude_vector" if layer in a else "no lora_A and lora_B"
            raise Refused(f"{WEIGHTS}: use_dora is set, but layer {layer!r} has {lacks}; save the adapter again")
        for layer, vector in magnitude.items():
            expect(f"{layer}.lora_magnitude_vector", vector, (facts.layers[layer][0],))


def _names(pattern: str, layer: str) -> bool:
    """PEFT's rule for ``rank_pattern`` and ``alpha_pattern``: a regular expression for the end of the layer's name."""
    if _QUANTIFIER.search(pattern) or len(pattern) > 256:
        raise Refused(f"{CONFIG}: pattern {pattern!r} has a quantifier; name the layers one by one")
    try:
        return re.match(rf"(.*\.)?({pattern})$", layer) is not None
    except re.error as error:
        raise Refused(f"{CONFIG}: pattern {pattern!r} is not a regular expression: {error}") from None
