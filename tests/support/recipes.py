"""vFMs with random weights: a recipe says what, `write_version` makes the artifact with PEFT's own writer."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.repository.artifact import LABELLED, Artifact, BackboneRef
from fmplex_backend.repository.config import CONFIG_FILE, ensemble_config, write_config
from fmplex_backend.repository.layout import socket_dims, sockets_of

fingerprint_of = functools.lru_cache(fingerprint)
base_model = functools.lru_cache(AutoModel.from_pretrained)
"""Shared: copy it before anything is attached to it."""


@dataclass(frozen=True)
class Recipe:
    """One random vFM; ``imported`` takes transformers' task class."""

    kind: str = "classification"
    outputs: int = 2
    lora: Mapping[str, Any] | None = None
    """Arguments of PEFT's `LoraConfig`."""
    peft: Mapping[str, Any] | None = None
    """In place of ``lora``: arguments of any other PEFT configuration, ``peft_type`` among them."""
    imported: bool = False
    pooling: str = "mean"
    head: str = "linear"
    normalize: bool = False
    encoder: Mapping[str, Any] = field(default_factory=dict)
    bias: float = 0.0
    """Every value of the linear head's bias: makes versions easy to tell apart."""

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        """Arguments of its PEFT configuration, ``peft_type`` among them; None for the bare backbone."""
        return self.peft if self.lora is None else {"peft_type": "LORA", **self.lora}

    @property
    def has_prompt(self) -> bool:
        """Whether virtual tokens go before its rows."""
        return self.adapter is not None and "num_virtual_tokens" in self.adapter


_QV = ("query", "value")
_IA3 = {"peft_type": "IA3"}
_PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5}
_P_TUNING = {"peft_type": "P_TUNING", "num_virtual_tokens": 7, "encoder_hidden_size": 16}
RECIPES: dict[str, Recipe] = {
    "bare_two": Recipe(),
    "bare_cls": Recipe(outputs=5, pooling="cls"),
    "bare_last": Recipe("regression", 1, pooling="last"),
    "lora_qv_4": Recipe(outputs=3, lora={"r": 4, "target_modules": _QV}),
    "lora_all_16": Recipe(outputs=2, lora={"r": 16, "lora_alpha": 8, "target_modules": "all-linear"}),
    "lora_rank_3": Recipe("multi_label", 6, lora={"r": 3, "target_modules": ("dense", "key")}),
    "lora_rslora": Recipe("regression", 2, lora={"r": 8, "use_rslora": True, "target_modules": _QV}),
    "lora_biases": Recipe(outputs=4, lora={"r": 8, "bias": "all", "target_modules": _QV}),
    "lora_only_biases": Recipe(outputs=4, lora={"r": 8, "bias": "lora_only", "target_modules": ("dense",)}),
    "lora_own_bias": Recipe(outputs=4, lora={"r": 8, "lora_bias": True, "target_modules": _QV}),
    "lora_patterns": Recipe(
        outputs=3,
        lora={
            "r": 8,
            "target_modules": ("query", "key", "value"),
            "rank_pattern": {"query": 2, "layer.1.attention.self.key": 12},
            "alpha_pattern": {"value": 24, "layer.0.attention.self.query": 3},
        },
    ),
    "lora_one_layer": Recipe(lora={"r": 32, "target_modules": r"encoder\.layer\.1\.intermediate\.dense"}),
    "dora_qv_8": Recipe(outputs=3, lora={"r": 8, "use_dora": True, "target_modules": _QV}),
    "dora_all_4": Recipe(outputs=2, lora={"r": 4, "use_dora": True, "target_modules": "all-linear"}),
    "dora_biases": Recipe(
        outputs=3,
        lora={"r": 3, "use_dora": True, "use_rslora": True, "bias": "all", "target_modules": ("value", "dense")},
    ),
    "ia3": Recipe(
        outputs=4,
        peft={
            **_IA3,
            "target_modules": ("key", "value", "output.dense"),
            "feedforward_modules": ("output.dense",),
        },
    ),
    "ia3_no_feedforward": Recipe(
        "regression", 2, peft={**_IA3, "target_modules": ("query", "dense"), "feedforward_modules": ()}
    ),
    "prompt": Recipe(outputs=3, peft=_PROMPT),
    "prompt_cls": Recipe("regression", 2, pooling="cls", peft={**_PROMPT, "num_virtual_tokens": 1}),
    "prompt_last": Recipe("multi_label", 3, pooling="last", peft=_PROMPT),
    "prompt_pair": Recipe(outputs=3, encoder={"pair": True, "max_length": 24}, peft=_PROMPT),
    "prompt_tokens": Recipe("embedding", head="identity", pooling="none", peft=_PROMPT),
    "p_tuning": Recipe(outputs=2, peft=_P_TUNING),
    "embed": Recipe("embedding", head="identity", normalize=True),
    "embed_projected": Recipe("embedding", 24, pooling="cls", lora={"r": 4, "target_modules": _QV}),
    "embed_tokens": Recipe("embedding", head="identity", pooling="none"),
    "tokens": Recipe("token_classification", 5, pooling="none", lora={"r": 8, "target_modules": _QV}),
    "imported_sequence": Recipe(outputs=3, imported=True, lora={"r": 8, "target_modules": _QV}),
    "imported_regression": Recipe("regression", 1, imported=True, lora={"r": 4, "target_modules": ("dense",)}),
    "imported_tokens": Recipe(
        "token_classification", 4, imported=True, pooling="none", lora={"r": 8, "bias": "all", "target_modules": _QV}
    ),
    "imported_dora": Recipe(outputs=3, imported=True, lora={"r": 8, "use_dora": True, "target_modules": _QV}),
    "imported_ia3": Recipe(outputs=3, imported=True, peft=_IA3),
    "imported_prompt": Recipe(outputs=3, imported=True, peft=_PROMPT),
    "imported_prompt_pair": Recipe(outputs=2, imported=True, encoder={"pair": True, "max_length": 24}, peft=_PROMPT),
    "imported_prompt_tokens": Recipe(
        "token_classification", 4, imported=True, pooling="none", peft={**_P_TUNING, "num_virtual_tokens": 3}
    ),
    "pair": Recipe(outputs=3, encoder={"pair": True, "max_length": 24}, lora={"r": 8, "target_modules": _QV}),
    "prefixed": Recipe(encoder={"prefix": "query: ", "lowercase": True, "collapse_whitespace": True}),
    "short": Recipe("regression", 1, encoder={"max_length": 8}),
    "untruncated": Recipe(outputs=2, encoder={"truncation": False, "max_length": 16}),
}
"""Every kind of vFM and every kind of adapter that is served."""


def artifact_of(recipe: Recipe, backbone: Path) -> Artifact:
    """The ``vfm.json`` of ``recipe``."""
    labels = [f"L{i}" for i in range(recipe.outputs)] if recipe.kind in LABELLED else None
    return Artifact.model_validate(
        {
            "kind": recipe.kind,
            "backbone": BackboneRef(name="test", fingerprint=fingerprint_of(backbone)),
            "pooling": recipe.pooling,
            "head": "transformers" if recipe.imported else recipe.head,
            "labels": labels,
            "normalize": recipe.normalize,
            "adapter": recipe.adapter is not None,
            "encoder": recipe.encoder,
        }
    )


def width_of(recipe: Recipe, backbone: Path) -> int:
    """Outputs of its head."""
    return int(base_model(backbone).config.hidden_size) if recipe.head == "identity" else recipe.outputs


def write_version(folder: Path, recipe: Recipe, backbone: Path, seed: int = 0) -> Path:
    """Make the version directory ``folder``; the same seed gives the same weights."""
    folder.mkdir(parents=True)
    artifact = artifact_of(recipe, backbone)
    (folder / "vfm.json").write_text(artifact.model_dump_json(indent=2))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if recipe.adapter is not None:
            save_adapter(folder / "adapter", recipe, backbone)
        if artifact.head == "linear":
            weight = torch.randn(recipe.outputs, base_model(backbone).config.hidden_size) * 0.1
            save_file(
                {"weight": weight, "bias": torch.full((recipe.outputs,), recipe.bias)}, folder / "head.safetensors"
            )
    return folder


def save_adapter(folder: Path, recipe: Recipe, backbone: Path) -> None:
    """A PEFT checkpoint with random weights, biases and head; seeded by torch's own generator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(_task_model(recipe, backbone), _peft_config(recipe))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = _trained(name, parameter.data)
        model.save_pretrained(folder, save_embedding_layers=False)


def _trained(name: str, start: torch.Tensor) -> torch.Tensor:
    """Random values in the place of trained ones, far enough from the start that their absence is seen."""
    noise = torch.randn_like(start)
    if "lora_A" in name or "mlp_head" in name:
        return start
    if "lora_B.default.weight" in name:
        return 0.03 * noise
    if "lora_magnitude" in name or "ia3_l" in name:
        return start * (1 + 0.3 * noise)
    return start + 0.1 * noise


def _peft_config(recipe: Recipe) -> PeftConfig:
    assert recipe.adapter is not None
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.adapter.items()}
    if isinstance(targets := arguments.get("target_modules"), str) and targets != "all-linear":
        arguments["target_modules"] = f".*{targets}"
    if recipe.imported:
        arguments["task_type"] = {"token_classification": "TOKEN_CLS"}.get(recipe.kind, "SEQ_CLS")
    elif recipe.has_prompt:
        arguments["task_type"] = "FEATURE_EXTRACTION"
    # Else none: without a "task" all of "all-linear" is the backbone's, pooler and all.
    return get_peft_config(arguments)


def _task_model(recipe: Recipe, backbone: Path) -> Any:
    if not recipe.imported:
        return copy.deepcopy(base_model(backbone))
    tokens = recipe.kind == "token_classification"
    auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    return auto.from_pretrained(backbone, num_labels=recipe.outputs)


def write_vfm(
    repository: Path,
    name: str,
    port: int,
    recipe: Recipe,
    backbone: Path,
    *,
    seed: int = 0,
    fm: str = "minilm",
    parameters: dict[str, str] | None = None,
) -> Path:
    """Put the vFM ``name`` into ``repository`` by one rename, as `fmplex task` does; returns its folder."""
    staging = stage(repository, name)
    write_version(staging / "1", recipe, backbone, seed)
    write_ensemble(staging, port, recipe, backbone, fm=fm, parameters=parameters)
    return publish(staging, repository / name)


def write_ensemble(
    folder: Path,
    port: int,
    recipe: Recipe,
    backbone: Path,
    *,
    fm: str = "minilm",
    parameters: dict[str, str] | None = None,
) -> None:
    """Its ``config.pbtxt``."""
    artifact = artifact_of(recipe, backbone)
    sockets = {name: (port, socket) for name, socket in sockets_of(artifact.kind, artifact.pooling).items()}
    sockets["info"] = (port, "info")
    shapes = socket_dims(artifact.kind, artifact.pooling, width_of(recipe, backbone))
    dims = {name: shapes[socket] for name, (_, socket) in sockets.items()}
    inputs = ("text", "text_pair") if artifact.encoder.pair else ("text",)
    write_config(folder / CONFIG_FILE, ensemble_config(fm, sockets, dims, inputs=inputs, parameters=parameters))


def stage(repository: Path, name: str) -> Path:
    """An empty folder beside ``repository``, where things are made before a rename puts them in."""
    folder = repository.parent / "staging" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(staging: Path, target: Path) -> Path:
    """Move ``staging`` into its place at once."""
    os.rename(staging, target)
    return target
