"""PEFT checkpoints of the recipes, saved by PEFT and read by us."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from fmplex_backend.repository.peft_checkpoint import CONFIG, WEIGHTS, AdapterWeights, read_checkpoint
from support.facts import facts_of
from support.recipes import RECIPES, save_adapter

ADAPTED = {name: recipe for name, recipe in RECIPES.items() if recipe.adapter is not None}
"""The recipes with a checkpoint."""


def saved(folder: Path, name: str, backbone: Path) -> AdapterWeights:
    """Save the recipe's checkpoint into ``folder`` / ``adapter`` and read it."""
    torch.manual_seed(1)
    save_adapter(folder / "adapter", RECIPES[name], backbone)
    return read(folder, backbone)


def read(folder: Path, backbone: Path) -> AdapterWeights:
    """The checkpoint in ``folder`` / ``adapter``. Raises `Refused`."""
    return read_checkpoint(folder / "adapter", folder, facts_of(backbone), 64)


def with_peft(model: Any, folder: Path) -> Any:
    """``model`` with the checkpoint on it, by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder / "adapter").eval()


def weights_file(folder: Path) -> Path:
    """The checkpoint's tensors."""
    return folder / "adapter" / WEIGHTS


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys of the checkpoint's configuration."""
    path = folder / "adapter" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
