"""Real PEFT checkpoints are read to what PEFT computes with them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.checkpoints import ADAPTED, edit_config, read, saved, weights_file, with_peft
from support.facts import facts_of
from support.recipes import RECIPES, base_model
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from fmplex_backend.arrays import Array
from fmplex_backend.repository.peft_checkpoint import AdapterWeights
from fmplex_backend.repository.peft_checkpoint.lora import LoraConfigFile

WRAPPED = [name for name, recipe in ADAPTED.items() if not recipe.has_prompt and not recipe.imported]
PROMPTS = [name for name, recipe in ADAPTED.items() if recipe.has_prompt]


def forward(adapter: AdapterWeights, layer: str, x: Array, weight: Array, bias: Array) -> Array:
    """What `AdapterWeights` says a layer computes, in its own words."""
    bias = adapter.bias.get(layer, bias)
    y = (adapter.in_scale.get(layer, np.float32(1)) * x) @ weight.T
    if layer in adapter.a:
        y = y + x @ adapter.a[layer].T @ adapter.b[layer].T
    if layer in adapter.magnitude:
        norm = np.linalg.norm(weight + adapter.b[layer] @ adapter.a[layer], axis=1)
        y = adapter.magnitude[layer] / norm * y
    return adapter.out_scale.get(layer, np.float32(1)) * (y + bias) + adapter.bias_delta.get(layer, np.float32(0))


def check_layers(adapter: AdapterWeights, folder: Path, backbone: Path) -> None:
    """Every layer of PEFT's own model computes what was read, and only touched ones differ from the bare backbone."""
    base = base_model(backbone)
    model = with_peft(copy.deepcopy(base), folder).get_base_model()
    touched = adapter.a.keys() | adapter.out_scale.keys() | adapter.in_scale.keys() | adapter.bias.keys()
    for layer, (_, width) in facts_of(backbone).layers.items():
        own = base.get_submodule(layer)
        x = torch.randn(3, width)
        with torch.inference_mode():
            wanted, bare = model.get_submodule(layer)(x).numpy(), own(x).numpy()
        got = forward(adapter, layer, x.numpy(), own.weight.detach().numpy(), own.bias.detach().numpy())
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=layer)
        assert (layer in touched) == (np.abs(wanted - bare).max() > 1e-3), layer


@pytest.mark.parametrize("name", sorted(WRAPPED))
def test_every_layer_computes_what_peft_computes(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    adapter = saved(tmp_path, name, tiny_backbone)
    check_layers(adapter, tmp_path, tiny_backbone)
    assert not adapter.head
    assert adapter.virtual_tokens == 0
    assert (adapter.rank > 0) == (RECIPES[name].lora is not None)
    assert adapter.magnitude.keys() == (adapter.a.keys() if name.startswith("dora") else set())


@pytest.mark.parametrize("name", ["lora_qv_4", "dora_qv_8", "ia3"])
def test_fan_in_fan_out_means_nothing_on_linear_layers(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    saved(tmp_path, name, tiny_backbone)
    edit_config(tmp_path, fan_in_fan_out=True)
    check_layers(read(tmp_path, tiny_backbone), tmp_path, tiny_backbone)


def test_dora_under_the_name_it_has_inside_the_model(tiny_backbone: Path, tmp_path: Path) -> None:
    plain = saved(tmp_path, "dora_qv_8", tiny_backbone)
    path = weights_file(tmp_path)
    tensors = load_file(path)
    assert any(key.endswith(".lora_magnitude_vector") for key in tensors), "PEFT names it otherwise now"
    renamed = {key.replace("_vector", "_vector.weight"): value for key, value in tensors.items()}
    save_file(renamed, path)
    again = read(tmp_path, tiny_backbone)
    for layer, vector in plain.magnitude.items():
        np.testing.assert_array_equal(vector, again.magnitude[layer])


def test_feedforward_modules_as_an_expression(tiny_backbone: Path, tmp_path: Path) -> None:
    saved(tmp_path, "ia3", tiny_backbone)
    edit_config(tmp_path, feedforward_modules=r".*\.output\.dense")
    adapter = read(tmp_path, tiny_backbone)
    assert len(adapter.in_scale) == 4
    check_layers(adapter, tmp_path, tiny_backbone)


@pytest.mark.parametrize("name", sorted(name for name, recipe in ADAPTED.items() if recipe.imported))
def test_a_head_saved_along(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    assert set(saved(tmp_path, name, tiny_backbone).head) == {"classifier.weight", "classifier.bias"}


def test_biases_of_a_head_saved_twice(tiny_backbone: Path, tmp_path: Path) -> None:
    """With bias="all" PEFT saves the untrained head's bias as ``original_module`` too; the trained one counts."""
    adapter = saved(tmp_path, "imported_tokens", tiny_backbone)
    tensors = load_file(weights_file(tmp_path))
    assert any(".original_module." in key for key in tensors), "PEFT no longer does this"
    trained = next(v for k, v in tensors.items() if "classifier" in k and k.endswith("bias") and "original" not in k)
    np.testing.assert_array_equal(adapter.head["classifier.bias"], trained)


# Prompts: PEFT's own models against what the docstring of `prompt` says of them.

IDS = torch.tensor([[2, 5, 9, 3, 6, 11, 3]])
TYPES = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
MASK = torch.ones_like(IDS)


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_a_prompt_is_what_peft_loads(tiny_backbone: Path, tmp_path: Path, name: str) -> None:
    adapter = saved(tmp_path, name, tiny_backbone)
    recipe = RECIPES[name]
    if not recipe.imported:
        model = copy.deepcopy(base_model(tiny_backbone))
    else:
        tokens = recipe.kind == "token_classification"
        task = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
        model = task.from_pretrained(tiny_backbone, num_labels=recipe.outputs)
    wanted = with_peft(model, tmp_path).get_prompt(1)[0].detach().numpy()
    assert adapter.prompt is not None
    np.testing.assert_array_equal(adapter.prompt, wanted)
    assert (adapter.virtual_tokens, adapter.rank) == (len(wanted), 0)


def hidden_behind(prompt: Array, backbone: Any, types: torch.Tensor) -> torch.Tensor:
    """The docstring's forward: [1, V + 7, hidden], positions counted from the first virtual token."""
    words = torch.cat([torch.from_numpy(prompt)[None], backbone.embeddings.word_embeddings(IDS)], 1)
    types = torch.cat([torch.zeros(1, len(prompt), dtype=torch.int64), types], 1)
    positions = torch.arange(words.shape[1])[None]
    hidden: torch.Tensor = backbone(
        inputs_embeds=words, token_type_ids=types, position_ids=positions, attention_mask=torch.ones_like(types)
    ).last_hidden_state
    return hidden


@torch.inference_mode()
def test_feature_extraction_keeps_virtual_positions_and_drops_types(tiny_backbone: Path, tmp_path: Path) -> None:
    adapter = saved(tmp_path, "prompt", tiny_backbone)
    assert adapter.prompt is not None
    base = base_model(tiny_backbone)
    model = with_peft(copy.deepcopy(base), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it drops them
        got = model(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES).last_hidden_state
    assert got.shape[1] == 5 + 7
    torch.testing.assert_close(got, hidden_behind(adapter.prompt, base, torch.zeros_like(TYPES)))


@torch.inference_mode()
def test_task_classes_keep_types_and_pool_a_virtual_token(tiny_backbone: Path, tmp_path: Path) -> None:
    adapter = saved(tmp_path, "imported_prompt_pair", tiny_backbone)
    assert adapter.prompt is not None
    model = with_peft(AutoModelForSequenceClassification.from_pretrained(tiny_backbone), tmp_path)
    got = model(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES).logits
    base = base_model(tiny_backbone)
    first = hidden_behind(adapter.prompt, base, TYPES)[:, 0]
    weight, bias = (torch.from_numpy(adapter.head[f"classifier.{name}"]) for name in ("weight", "bias"))
    torch.testing.assert_close(got, torch.tanh(base.pooler.dense(first)) @ weight.T + bias)


@torch.inference_mode()
def test_token_classes_answer_for_virtual_tokens_too(tiny_backbone: Path, tmp_path: Path) -> None:
    adapter = saved(tmp_path, "imported_prompt_tokens", tiny_backbone)
    assert adapter.prompt is not None
    model = with_peft(AutoModelForTokenClassification.from_pretrained(tiny_backbone, num_labels=4), tmp_path)
    got = model(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES).logits
    assert got.shape == (1, 3 + 7, 4)
    weight, bias = (torch.from_numpy(adapter.head[f"classifier.{name}"]) for name in ("weight", "bias"))
    torch.testing.assert_close(got, hidden_behind(adapter.prompt, base_model(tiny_backbone), TYPES) @ weight.T + bias)


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
