"""A checkpoint as PEFT writes it, checked against the backbone it is to plug into.

Format: ``adapter_config.json`` and ``adapter_model.safetensors`` of ``PeftModel.save_pretrained`` (PEFT 0.4 to 0.21).
One module for each family of methods says what PEFT's own forward does with the weights, which is what is served:

==================================  =============================================
``peft_type``                       read by
==================================  =============================================
``LORA``, with rsLoRA and DoRA      `lora`
``IA3``                             `ia3`
``PROMPT_TUNING``, ``P_TUNING``     `prompt`
==================================  =============================================

Any other ``peft_type`` is refused, and so is any option that would be answered wrongly if it were ignored.
"""

from __future__ import annotations

from pathlib import Path

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint.ia3 import IA3ConfigFile
from fmplex_backend.repository.peft_checkpoint.kind import (
    CONFIG,
    WEIGHTS,
    AdapterWeights,
    CheckpointConfig,
    parse,
)
from fmplex_backend.repository.peft_checkpoint.lora import LoraConfigFile
from fmplex_backend.repository.peft_checkpoint.prompt import PromptConfigFile
from fmplex_backend.repository.safe_files import read_json, read_tensors

__all__ = ["CONFIG", "KINDS", "WEIGHTS", "AdapterWeights", "read_checkpoint"]

KINDS: dict[str, type[CheckpointConfig]] = {
    "LORA": LoraConfigFile,
    "IA3": IA3ConfigFile,
    "PROMPT_TUNING": PromptConfigFile,
    "P_TUNING": PromptConfigFile,
}
"""Each ``peft_type`` that is served, and what reads it."""


def read_checkpoint(folder: Path, root: Path, facts: BackboneFacts, max_rank: int) -> AdapterWeights:
    """Read and check ``folder``; ``root`` is the vFM's folder, which nothing may lead out of.

    Raises `Refused` naming the tensor or key, the value and what would be right.
    """
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise Refused("adapter_model.bin is a pickle and is never read; save with safe_serialization=True")
    content = read_json(folder / CONFIG, root)
    peft_type = parse(CheckpointConfig, content).peft_type
    if peft_type not in KINDS:
        raise Refused(
            f"{CONFIG}: peft_type is {peft_type!r}, which is not served; served are LORA (also rsLoRA and DoRA), IA3, "
            "PROMPT_TUNING and P_TUNING"
        )
    config = parse(KINDS[peft_type], content)
    config.check(facts)
    return config.read(read_tensors(folder / WEIGHTS, root), facts, max_rank)
