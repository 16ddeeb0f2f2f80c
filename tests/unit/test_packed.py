"""A version read, checked and packed; the packed file is the same for an engine whatever happens to the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.broken import BROKEN, GOOD, Broken
from support.facts import facts_of
from support.recipes import RECIPES, write_ensemble, write_version

from fmplex_backend.errors import Refused
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.config import read_config, vfm_config
from fmplex_backend.repository.interface import check_interface
from fmplex_backend.repository.packed import pack, read_version
from fmplex_backend.repository.watch import signature

NOT_HERE = {"no_version", "pinned_nowhere", "port_out_of_range", "foreign", "head_not_the_labels"}
"""What the registry finds, and what is made for MiniLM's width."""
HERE = [case for case in BROKEN if case.name not in NOT_HERE]


@pytest.fixture(scope="module")
def template(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "vfm"
    write_version(folder / "1", GOOD, tiny_backbone)
    write_ensemble(folder, 3, GOOD, tiny_backbone)
    return folder


@pytest.fixture
def vfm(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "vfm")
    return tmp_path / "vfm"


def load(folder: Path, backbone: Path) -> Any:
    """Everything that is checked before the engine: configuration, artifact, and whether they fit."""
    config = vfm_config(folder.name, read_config(folder / "config.pbtxt"), {"minilm"})
    assert config is not None
    content = read_version(folder / "1", folder, facts_of(backbone), 64)
    check_interface(config, content, 64)
    return content


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
def test_the_table_of_broken_vfms(vfm: Path, tiny_backbone: Path, case: Broken) -> None:
    """The table that the live server is tested with holds without it, on another backbone."""
    case.breaks(vfm)
    with pytest.raises(Refused) as caught:
        load(vfm, tiny_backbone)
    for part in case.says:
        if not any(number in part for number in ("384", "512")):  # MiniLM's own sizes
            assert part in str(caught.value)


PARTS = {
    **{name: {"magnitude"} for name in RECIPES if "dora" in name},
    **{name: {"out_scale", "in_scale"} for name in ("ia3", "imported_ia3")},
    "ia3_no_feedforward": {"out_scale"},
    **{name: {"prompt"} for name, recipe in RECIPES.items() if recipe.has_prompt},
}
"""What a recipe's packed file holds beside LoRA, biases and the head."""


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_packed_file(tmp_path: Path, tiny_backbone: Path, name: str) -> None:
    recipe = RECIPES[name]
    version = write_version(tmp_path / "vfm/1", recipe, tiny_backbone)
    content = read_version(version, tmp_path / "vfm", facts_of(tiny_backbone), 64)
    pack(content, tmp_path / "packed.safetensors")
    with safe_open(tmp_path / "packed.safetensors", framework="np") as file:
        kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118 - not a dict
        assert Artifact.model_validate_json(file.metadata()["artifact"]) == content.artifact
        assert all(file.get_tensor(key).dtype == np.float32 for key in file.keys())  # noqa: SIM118
    assert kinds >= {"lora_A", "lora_B"} if recipe.lora else not kinds & {"lora_A", "lora_B"}
    assert kinds - {"lora_A", "lora_B", "bias", "bias_delta", "head"} == PARTS.get(name, set())
    assert ("head" in kinds) == (recipe.head != "identity")
    assert content.width == (32 if recipe.head == "identity" else recipe.outputs)
    assert not (tmp_path / "packed.partial").exists()


def _vfm_json(vfm: Path, **changes: Any) -> None:
    path = vfm / "1/vfm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "sentiment"}, "key 'kind' is 'sentiment'"),
        ({"labels": None}, "needs 'labels'"),
        ({"labels": ["a", "a", "b"]}, "'labels' must be distinct"),
        ({"labels": ["a"]}, "at least 2 labels"),
        ({"labels": ["a", "", "b"]}, "must not be empty"),
        ({"labels": [1] * 101}, "vfm.json: 101 things are wrong with it"),
        ({"labels": ["a", "b", "\ud800"]}, "vfm.json is not valid JSON: 'utf-8' codec can't encode"),
        ({"head": "identity"}, "head 'identity' is for embeddings"),
        ({"head": "transformers", "adapter": False}, "'adapter' must be true"),
        ({"pooling": "none"}, "needs pooling 'mean', 'cls' or 'last'"),
        ({"normalize": True}, "'normalize' is for embeddings"),
        ({"threshold": 1.0}, "key 'threshold' is 1.0"),
        ({"format": 2}, "key 'format' is 2"),
        ({"backbone": {"name": "x", "fingerprint": "md5:1"}}, "'backbone.fingerprint' is 'md5:1'"),
        ({"encoder": {"max_length": 2}}, "'encoder.max_length' is 2"),
        ({"encoder": {"max_len": 8}}, "unknown key 'encoder.max_len'"),
        ({"encoder": {"max_length": 65}}, "encoder.max_length 65 exceeds the backbone's 64 tokens"),
        ({"encoder": {"pair": True}}, "feeds ['text']; its encoder reads ['text', 'text_pair']"),
        ({"kind": "token_classification", "pooling": "none", "encoder": {"prefix": "q"}}, "no 'prefix'"),
        ({"kind": "regression", "labels": None}, "output 'label' maps socket 'text'"),
    ],
)
def test_vfm_json(vfm: Path, tiny_backbone: Path, changes: dict[str, Any], says: str) -> None:
    _vfm_json(vfm, **changes)
    with pytest.raises(Refused) as caught:
        load(vfm, tiny_backbone)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"'])
def test_vfm_json_that_is_no_object(vfm: Path, tiny_backbone: Path, content: str) -> None:
    (vfm / "1/vfm.json").write_text(content)
    with pytest.raises(Refused, match=r"vfm\.json"):
        load(vfm, tiny_backbone)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": np.zeros((3, 32)), "bais": np.zeros(3)}, "holds ['bais', 'weight']"),
        ({"bias": np.zeros(3)}, "holds ['bias']"),
        ({"weight": np.zeros(32)}, "weight has shape [32]"),
        ({"weight": np.zeros((0, 32))}, "weight has shape [0, 32]; it has at least one output"),
        ({"weight": np.zeros((3, 32)), "bias": np.zeros(2)}, "bias has shape [2]; it is [3]"),
    ],
)
def test_head(vfm: Path, tiny_backbone: Path, tensors: dict[str, Any], says: str) -> None:
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, vfm / "1/head.safetensors")
    with pytest.raises(Refused) as caught:
        load(vfm, tiny_backbone)
    assert says in str(caught.value)


def test_a_prompt_takes_its_room_from_the_text(tmp_path: Path, tiny_backbone: Path) -> None:
    facts = facts_of(tiny_backbone)
    version = write_version(tmp_path / "vfm/1", RECIPES["prompt"], tiny_backbone)
    content = read_version(version, tmp_path / "vfm", facts, 64)
    assert content.artifact.encoder.max_length == 64 - 5
    _vfm_json(tmp_path / "vfm", encoder={"max_length": 59})
    assert read_version(version, tmp_path / "vfm", facts, 64).artifact.encoder.max_length == 59
    _vfm_json(tmp_path / "vfm", encoder={"max_length": 60})
    with pytest.raises(Refused, match=r"max_length 60 and the prompt's 5 virtual tokens .* at most 59 are left"):
        read_version(version, tmp_path / "vfm", facts, 64)


@pytest.mark.parametrize(
    ("task_type", "says"),
    [
        ("SEQ_CLS", "task_type 'SEQ_CLS', so 'head' must be 'transformers', not 'linear'"),
        ("TOKEN_CLS", "task_type 'TOKEN_CLS', so 'head' must be 'transformers', not 'linear'"),
    ],
)
def test_a_prompt_is_served_with_the_head_it_was_trained_with(
    tmp_path: Path, tiny_backbone: Path, task_type: str, says: str
) -> None:
    version = write_version(tmp_path / "vfm/1", RECIPES["prompt"], tiny_backbone)
    path = version / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": task_type}))
    with pytest.raises(Refused) as caught:
        read_version(version, tmp_path / "vfm", facts_of(tiny_backbone), 64)
    assert says in str(caught.value)


def test_a_prompt_without_a_head_wants_no_task_class(tmp_path: Path, tiny_backbone: Path) -> None:
    version = write_version(tmp_path / "vfm/1", RECIPES["imported_prompt"], tiny_backbone)
    path = version / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "FEATURE_EXTRACTION"}))
    with pytest.raises(Refused, match="'head' must be 'linear' or 'identity', not 'transformers'"):
        read_version(version, tmp_path / "vfm", facts_of(tiny_backbone), 64)


def test_a_head_in_the_adapter_wants_head_transformers(tmp_path: Path, tiny_backbone: Path) -> None:
    version = write_version(tmp_path / "vfm/1", RECIPES["imported_sequence"], tiny_backbone)
    _vfm_json(tmp_path / "vfm", head="linear")
    save_file({"weight": np.zeros((3, 32), np.float32)}, version / "head.safetensors")
    with pytest.raises(Refused, match="brings a head of its own"):
        read_version(version, tmp_path / "vfm", facts_of(tiny_backbone), 64)


def test_signature_sees_every_change(vfm: Path) -> None:
    seen = {signature(vfm)}
    assert signature(vfm) in seen
    for change in (
        lambda: (vfm / "1/new").write_text(""),
        lambda: (vfm / "1/new").write_text("x"),
        lambda: os.utime(vfm / "1/head.safetensors", (5, 5)),
        lambda: (vfm / "1/new").rename(vfm / "1/newer"),
        lambda: (vfm / "1/newer").unlink(),
        lambda: shutil.copy(vfm / "1/vfm.json", vfm / "1/adapter"),
    ):
        change()
        assert signature(vfm) not in seen
        seen.add(signature(vfm))
