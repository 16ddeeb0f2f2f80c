"""Telling a checkpoint's tensors apart by their names.

PEFT names them ``base_model.model.<module>.lora_A.weight`` and so on, where ``<module>`` has the prefix of the task
class (``bert.``) in front when the adapter was trained on one. With a prompt nothing is wrapped inside the model, and
the second ``model.`` is not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint.kind import WEIGHTS

_OF_AN_ADAPTER = re.compile(r"(^|\.)(lora|ia3)_")


@dataclass
class Tensors:
    """A weights file, sorted."""

    parts: dict[str, dict[str, Array]]
    """Part of the adapter, as `tell_apart` was told to call it → layer → array."""
    bias: dict[str, Array] = field(default_factory=dict)
    """Module of the backbone → its bias."""
    head: dict[str, Array] = field(default_factory=dict)
    """Name in transformers' task class → array."""


def tell_apart(
    tensors: Mapping[str, Array], suffixes: Mapping[str, str], facts: BackboneFacts, prefix: str = "base_model.model."
) -> Tensors:
    """Sort ``tensors``; ``suffixes`` are what names of the adapter's own end with → the part's name.

    Raises `Refused` for a layer that the backbone lacks, for a tensor that is there twice with different values, and
    for one that would change the shared backbone.
    """
    found = Tensors({part: {} for part in suffixes.values()})
    for key, array in tensors.items():
        if not key.startswith(prefix):
            raise Refused(f"{WEIGHTS}: tensor {key!r} does not start with {prefix!r}, so PEFT did not write it")
        name = key.removeprefix(prefix)
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
        if suffix is None:
            _sort_other(name, array, facts, found)
        else:
            _put(found.parts[suffixes[suffix]], _layer(name.removesuffix(suffix), facts), array, key)
    return found


def _sort_other(name: str, array: Array, facts: BackboneFacts, found: Tensors) -> None:
    if ".original_module." in name:
        return  # PEFT saves it with bias="all"; what answers is the copy under modules_to_save
    module, _, parameter = name.rpartition(".")
    module = _strip(module.removesuffix(".base_layer"), facts)
    if parameter == "bias" and module in facts.biases:
        _put(found.bias, module, array, name)
    elif _OF_AN_ADAPTER.search(name) or _is_backbone(name, facts):
        raise Refused(
            f"{WEIGHTS}: tensor {name!r} changes the shared backbone itself, or is not of this peft_type; a vFM may "
            "bring one adapter on linear layers, LoRA's biases, a prompt, and its own head"
        )
    else:
        _put(found.head, name.replace(".modules_to_save.", "."), array, name)


def _put(table: dict[str, Array], name: str, array: Array, key: str) -> None:
    # PEFT itself saves a head's bias twice with bias="all"; then both are the same.
    if name in table and not np.array_equal(table[name], array):
        raise Refused(f"{WEIGHTS}: tensor {key!r} is there twice, with other values under another name of {name!r}")
    table[name] = array


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
