"""Corrupted PEFT checkpoints, and those that would be answered wrongly, are refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.broken import BROKEN, GOOD
from support.checkpoints import ADAPTED, edit_config, read, saved, weights_file
from support.facts import facts_of
from support.recipes import write_version

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint import read_checkpoint

Tensors = dict[str, Array]
Change = Callable[[Tensors], Tensors]


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


def _drop(suffix: str) -> Change:
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(suffix)}


def _rename(old: str, new: str) -> Change:
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def _add(key: str, *shape: int) -> Change:
    return lambda tensors: tensors | {key: np.zeros(shape, np.float32)}


_B = "base_model.model."
_QUERY = f"{_B}encoder.layer.0.attention.self.query"
_KEY = f"{_B}encoder.layer.0.attention.self.key"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("lora_qv_4", _drop("layer.0.attention.self.query.lora_B.weight"), "only one of lora_A and lora_B"),
        ("lora_qv_4", _rename(_B, "model."), "PEFT did not write it"),
        ("lora_qv_4", _add(f"{_QUERY}.lora_magnitude_vector", 32), "does not say use_dora"),
        ("lora_qv_4", _add(f"{_QUERY}.ia3_l", 32, 1), "not of this peft_type"),
        ("lora_qv_4", _add(f"{_QUERY}.lora_diag", 4), "not of this peft_type"),
        ("lora_qv_4", _add(f"{_B}bert.encoder.layer.0.attention.self.query.lora_A.weight", 4, 32), "is there twice"),
        ("lora_qv_4", _add(f"{_B}embeddings.word_embeddings.weight", 1), "changes the shared backbone itself"),
        ("lora_qv_4", _add(f"{_B}encoder.layer.0.output.dense.weight", 1), "changes the shared backbone itself"),
        ("lora_qv_4", _add(f"{_B}pooler.dense.bias", 5), "pooler.dense.bias has shape [5]"),
        ("lora_qv_4", lambda _: {f"{_B}classifier.weight": np.zeros((2, 32), np.float32)}, "holds no LoRA weights"),
        ("lora_qv_4", lambda t: {key: value.astype(np.int32) for key, value in t.items()}, "has dtype I32"),
        ("dora_qv_8", _drop("layer.0.attention.self.query.lora_magnitude_vector"), "has no lora_magnitude_vector"),
        ("dora_qv_8", _add(f"{_KEY}.lora_magnitude_vector", 32), "has no lora_A and lora_B"),
        ("dora_qv_8", _add(f"{_QUERY}.lora_B.bias", 32), "PEFT has no DoRA with lora_bias"),
        ("dora_qv_8", _drop("lora_A.weight"), "only one of lora_A and lora_B"),
        ("ia3", lambda _: {}, "holds no IA3 vectors"),
        ("ia3", _add(f"{_B}pooler.dense.bias", 32), "IA3 trains no biases"),
        ("ia3", _add(f"{_QUERY}.lora_A.weight", 4, 32), "not of this peft_type"),
        ("ia3", lambda t: t | {f"{_KEY}.ia3_l": t[f"{_KEY}.ia3_l"].T.copy()}, "does not name this layer"),
        ("ia3", _add(f"{_B}encoder.layer.1.output.dense.ia3_l", 32, 1), "names this layer"),
        ("ia3", _add(f"{_B}embeddings.word_embeddings.ia3_l", 32, 1), "no linear layer 'embeddings.word_embeddings'"),
        ("prompt", _rename("prompt_embeddings", "embeddings"), "holds no 'prompt_embeddings'"),
        ("prompt", _add("prompt_embeddings", 4, 32), "prompt_embeddings has shape [4, 32]"),
        ("prompt", _add("prompt_embeddings", 5, 16), "it is [5, 32]"),
        ("prompt", _add(f"{_QUERY}.lora_A.weight", 4, 32), "not of this peft_type"),
        ("prompt", _add("base_model.pooler.dense.bias", 32), "change the shared backbone itself"),
        ("prompt", _add("base_model.bert.pooler.dense.weight", 32, 32), "changes the shared backbone itself"),
    ],
)
def test_odd_tensors(tiny_backbone: Path, tmp_path: Path, name: str, change: Change, says: str) -> None:
    saved(tmp_path, name, tiny_backbone)
    path = weights_file(tmp_path)
    save_file(change(load_file(path)), path)
    with pytest.raises(Refused) as caught:
        read(tmp_path, tiny_backbone)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("lora_qv_4", {"init_lora_weights": "pissa"}, "changed the backbone's own weights"),
        ("lora_qv_4", {"layer_replication": [[0, 1]]}, "layer_replication is set"),
        ("lora_qv_4", {"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ("lora_qv_4", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ("lora_qv_4", {"use_qalora": True}, "use_qalora is set"),
        ("lora_qv_4", {"kasa_config": {"beta": 1}}, "kasa_config is set"),
        ("lora_qv_4", {"rank_pattern": {"(query)+": 4}}, "has a quantifier"),
        ("lora_qv_4", {"rank_pattern": {"query": 0}}, "'rank_pattern.query' is 0"),
        ("lora_qv_4", {"alpha_pattern": {"(": 4.0}}, "not a regular expression"),
        ("lora_qv_4", {"alpha_pattern": {"query": float("nan")}}, "'alpha_pattern.query' is nan"),
        ("lora_qv_4", {"lora_alpha": 1e300}, "by 2.5e+299, beyond what fp32 holds"),
        ("lora_qv_4", {"lora_alpha": "many"}, "'lora_alpha' is 'many'"),
        ("lora_qv_4", {"bias": "some"}, "'bias' is 'some'"),
        ("lora_qv_4", {"r": 0}, "'r' is 0"),
        ("lora_qv_4", {"peft_type": None}, "'peft_type' is None"),
        ("lora_qv_4", {"peft_type": "ADALORA"}, "peft_type is 'ADALORA', which is not served; served are LORA"),
        ("lora_qv_4", {"peft_type": "LOHA"}, "peft_type is 'LOHA', which is not served"),
        ("ia3", {"feedforward_modules": 3}, "'feedforward_modules"),
        ("prompt", {"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING', which is not served"),
        ("prompt", {"peft_type": "MULTITASK_PROMPT_TUNING"}, "which is not served"),
        ("prompt", {"task_type": None}, "task_type of a prompt is None"),
        ("prompt", {"task_type": "SEQ_2_SEQ_LM"}, "task_type of a prompt is 'SEQ_2_SEQ_LM'; served are SEQ_CLS"),
        ("prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        ("prompt", {"token_dim": 16}, "token_dim is 16; the backbone's embeddings are 32"),
        ("prompt", {"num_virtual_tokens": 6}, "has shape [5, 32]"),
        ("prompt", {"num_virtual_tokens": 0}, "'num_virtual_tokens' is 0"),
        ("prompt", {"num_virtual_tokens": 61}, "num_virtual_tokens is 61; the backbone takes 64"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_that_would_be_answered_wrongly(
    tiny_backbone: Path, tmp_path: Path, name: str, changes: dict[str, object], says: str
) -> None:
    saved(tmp_path, name, tiny_backbone)
    edit_config(tmp_path, **changes)
    with pytest.raises(Refused) as caught:
        read(tmp_path, tiny_backbone)
    assert says in str(caught.value)


@pytest.fixture(scope="module")
def checkpoints(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good checkpoint of each recipe; whoever changes one puts it back."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ADAPTED:
        saved(folder / name, name, tiny_backbone)
    return {name: folder / name for name in ADAPTED}


MALFORMED: dict[str, Callable[[Array], Array]] = {
    "a row too many": lambda array: np.concatenate([array, array[:1]]),
    "an axis too many": lambda array: array[None],
    "too narrow": lambda array: np.ascontiguousarray(array[..., : array.shape[-1] // 2]),
}
PARAMETER = re.compile(r"(lora_\w+(\.weight|\.bias)?|ia3_l|(base_layer\.)?bias|prompt_embeddings)$")
INDISPENSABLE = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "prompt_embeddings")


@given(data=st.data())
def test_every_malformed_tensor_is_refused_by_name(
    data: st.DataObject, checkpoints: dict[str, Path], tiny_backbone: Path
) -> None:
    """Any tensor of any kind: another shape, values that are not finite, gone, of a layer that is not there."""
    folder = checkpoints[data.draw(st.sampled_from(sorted(ADAPTED)), "recipe")]
    path = weights_file(folder)
    tensors = load_file(path)
    key = data.draw(st.sampled_from(sorted(k for k in tensors if "classifier" not in k)), "tensor")
    found = PARAMETER.search(key)
    assert found is not None, key
    parameter = found.group()
    name = key.removesuffix(parameter).removeprefix(_B).removeprefix("bert.").rstrip(".") or parameter
    hows = [*MALFORMED, "nan", "infinite", "elsewhere"] + ["gone"] * (parameter in INDISPENSABLE)
    how = data.draw(st.sampled_from(hows), "change")
    array = tensors.pop(key)
    if how == "elsewhere":
        tensors[f"{_B}encoder.nowhere.{parameter}"] = array
        name = name if name == parameter else "encoder.nowhere"
    elif how in ("nan", "infinite"):
        place = data.draw(st.integers(0, array.size - 1), "place")
        array.flat[place] = np.nan if how == "nan" else -np.inf
        tensors[key] = array
    elif how != "gone":
        tensors[key] = MALFORMED[how](array)
    before = path.read_bytes()
    try:
        save_file(tensors, path)
        with pytest.raises(Refused) as caught:
            read(folder, tiny_backbone)
    finally:
        path.write_bytes(before)
    assert name in str(caught.value)


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
            read(folder, tiny_backbone)
        said.add(str(caught.value))
    assert len(said) == 1
