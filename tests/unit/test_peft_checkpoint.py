"""Real PEFT checkpoints are read to what PEFT computes; corrupted ones are refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from support.broken import BROKEN, GOOD
from support.facts import facts_of
from support.recipes import RECIPES, base_model, save_adapter, write_version

from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint import LoraConfigFile, read_checkpoint

WITH_LORA = {name: recipe for name, recipe in RECIPES.items() if recipe.lora is not None}


@pytest.mark.parametrize("name", sorted(WITH_LORA))
def test_weights_are_pefts_own(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    """For every layer, base + B·A + biases equals the layer that PEFT merges."""
    recipe = WITH_LORA[name]
    torch.manual_seed(1)
    save_adapter(tmp_path / "adapter", recipe, tiny_backbone)
    read = read_checkpoint(tmp_path / "adapter", tmp_path, facts_of(tiny_backbone), 64)
    assert bool(read.head) == recipe.imported
    if recipe.imported:
        assert set(read.head) == {"classifier.weight", "classifier.bias"}
        return
    base = base_model(tiny_backbone)
    merged = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").merge_and_unload()
    touched = 0
    for layer in facts_of(tiny_backbone).layers:
        own, wanted = base.get_submodule(layer), merged.get_submodule(layer)
        weight, bias = own.weight.detach().numpy().copy(), own.bias.detach().numpy().copy()
        if layer in read.a:
            weight += read.b[layer] @ read.a[layer]
            touched += 1
        bias = read.bias.get(layer, bias) + read.bias_delta.get(layer, 0)
        np.testing.assert_allclose(weight, wanted.weight.detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(bias, wanted.bias.detach().numpy(), atol=1e-6)
    assert touched == len(read.a) > 0


def test_biases_of_a_head_saved_twice(tiny_backbone: Path, tmp_path: Path) -> None:
    """With bias="all" PEFT saves the untrained head's bias as ``original_module`` too; the trained one counts."""
    torch.manual_seed(1)
    save_adapter(tmp_path / "adapter", RECIPES["imported_tokens"], tiny_backbone)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert any(".original_module." in key for key in saved), "PEFT no longer does this"
    read = read_checkpoint(tmp_path / "adapter", tmp_path, facts_of(tiny_backbone), 64)
    trained = next(v for k, v in saved.items() if "classifier" in k and k.endswith("bias") and "original" not in k)
    np.testing.assert_array_equal(read.head["classifier.bias"], trained)


@pytest.fixture
def good(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A vFM's folder with one good version."""
    write_version(tmp_path / "good/1", GOOD, tiny_backbone)
    return tmp_path / "good"


def test_good(good: Path, tiny_backbone: Path) -> None:
    assert read_checkpoint(good / "1/adapter", good, facts_of(tiny_backbone), 64).rank == 8


_ADAPTER_CASES = [
    "no_adapter",
    "no_weights",
    "truncated",
    "no_such_layer",
    "nan_adapter",
    "pickle",
    "dora",
    "other_peft",
]


@pytest.mark.parametrize("name", [*_ADAPTER_CASES, "link_adapter"])
def test_corrupted(good: Path, tiny_backbone: Path, name: str) -> None:
    case = next(case for case in BROKEN if case.name == name)
    case.breaks(good)
    with pytest.raises(Refused) as caught:
        read_checkpoint(good / "1/adapter", good, facts_of(tiny_backbone), 64)
    for part in case.says:
        assert part in str(caught.value)


def _drop(suffix: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(suffix)}


def _rename(old: str, new: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_drop("layer.0.attention.self.query.lora_B.weight"), "only one of lora_A and lora_B"),
        (_rename("base_model.model.", "model."), "PEFT did not write it"),
        (_rename(".lora_A.weight", ".lora_magnitude_vector"), "changes the shared backbone itself"),
        (
            lambda t: t | {"base_model.model.embeddings.word_embeddings.weight": np.zeros(1, np.float32)},
            "shared backbone",
        ),
        (
            lambda t: t | {"base_model.model.encoder.layer.0.output.dense.weight": np.zeros(1, np.float32)},
            "shared backbone",
        ),
        (
            lambda t: t | {"base_model.model.pooler.dense.bias": np.zeros(5, np.float32)},
            "pooler.dense.bias has shape [5]",
        ),
        (lambda _: {"base_model.model.classifier.weight": np.zeros((2, 32), np.float32)}, "holds no LoRA weights"),
        (lambda t: {key: value.astype(np.int32) for key, value in t.items()}, "has dtype I32"),
    ],
    ids=["unpaired", "prefix", "dora", "embedding", "full_weight", "bias_shape", "no_lora", "dtype"],
)
def test_odd_tensors(good: Path, tiny_backbone: Path, change: Callable[..., dict[str, np.ndarray]], says: str) -> None:
    path = good / "1/adapter/adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(Refused, match=None) as caught:
        read_checkpoint(good / "1/adapter", good, facts_of(tiny_backbone), 64)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_lora_weights": "pissa"}, "changed the backbone's own weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"rank_pattern": {"(query)+": 4}}, "has a quantifier"),
        ({"alpha_pattern": {"(": 4.0}}, "not a regular expression"),
        ({"lora_alpha": "many"}, "'lora_alpha' is 'many'"),
        ({"bias": "some"}, "'bias' is 'some'"),
        ({"r": 0}, "'r' is 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_that_would_be_answered_wrongly(
    good: Path, tiny_backbone: Path, changes: dict[str, object], says: str
) -> None:
    path = good / "1/adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Refused) as caught:
        read_checkpoint(good / "1/adapter", good, facts_of(tiny_backbone), 64)
    assert says in str(caught.value)


def test_refusals_do_not_depend_on_the_order_of_tensors(good: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Everything is wrong; each time the same thing is named."""
    path = good / "1/adapter/adapter_model.safetensors"
    tensors = {key: value[:, :3] for key, value in load_file(path).items()}
    said = set()
    for number in range(8):
        folder = tmp_path / f"copy{number}"
        shutil.copytree(good / "1/adapter", folder / "adapter")
        save_file(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "adapter/adapter_model.safetensors"
        )
        with pytest.raises(Refused) as caught:
            read_checkpoint(folder / "adapter", folder, facts_of(tiny_backbone), 64)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.parametrize(("rslora", "factor"), [(False, 24 / 4), (True, 24 / 2)])
def test_scaling(rslora: bool, factor: float) -> None:
    config = LoraConfigFile(
        peft_type="LORA",
        r=8,
        lora_alpha=16,
        use_rslora=rslora,
        rank_pattern={"value": 4},
        alpha_pattern={"layer.1.value": 24},
    )
    assert config.rank("encoder.layer.1.value") == 4
    assert config.rank("encoder.layer.1.devalue") == 8
    assert config.scaling("encoder.layer.1.value", 4) == factor
    assert config.scaling("encoder.layer.0.query", 4) == (8 if rslora else 4)
