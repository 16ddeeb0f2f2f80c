"""The lean forward pass of BERT: the bits of transformers' own, with padding, pairs and hooks; where it is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import make_tiny_bert
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from fmplex_backend.backbones.lean_bert import LeanBert, fits
from fmplex_backend.backbones.registry import load_backbone

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}


def bert(**changes: Any) -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**{**SMALL, "initializer_range": 0.3, **changes})).eval().requires_grad_(False)


def rows(lengths: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 99, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(0, 2, ids.shape)}


@pytest.mark.parametrize("lengths", [[1], [7], [5, 5], [3, 9, 1], [40, 2]])
@torch.inference_mode()
def test_the_same_bits(lengths: list[int]) -> None:
    model, inputs = bert(), rows(lengths)
    real = inputs["attention_mask"].bool()
    for given in (inputs, {name: x for name, x in inputs.items() if name != "token_type_ids"}):
        wanted, found = model(**given).last_hidden_state, LeanBert(model)(**given)
        assert torch.equal(found[real], wanted[real])


@torch.inference_mode()
def test_hooks_are_heard() -> None:
    """Of every module that an adapter may touch: linear layers, those with a bias, and the word embeddings."""
    inputs = rows([6, 4])
    names = [
        name
        for name, module in bert().named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm) or name.endswith("word_embeddings")
        if "pooler" not in name
    ]
    assert len(names) == 3 * 8 + 2
    for name in names:
        model = bert()
        lean, before = LeanBert(model), LeanBert(model)(**inputs)
        model.get_submodule(name).register_forward_hook(lambda module, args, output: output * 1.25)
        found = lean(**inputs)
        real = inputs["attention_mask"].bool()
        assert torch.equal(found[real], model(**inputs).last_hidden_state[real]), name
        assert not torch.equal(found[real], before[real]), name


def test_where_it_is_not_used() -> None:
    assert fits(bert())
    assert not fits(bert().train())
    assert not fits(bert(hidden_act="relu"))
    assert not fits(bert(attn_implementation="eager"))
    assert not fits(bert(is_decoder=True))
    assert not fits(RobertaModel(RobertaConfig(**SMALL)).eval())


@torch.inference_mode()
def test_a_backbone_uses_it_for_its_own_model_alone(tmp_path: Path) -> None:
    backbone: Any = load_backbone(str(make_tiny_bert(tmp_path / "bert")), "fp32", "cpu")
    calls: list[int] = []
    lean = backbone._lean
    backbone._lean = lambda **inputs: calls.append(1) or lean(**inputs)
    inputs = rows([5, 3])
    inputs["input_ids"] %= 20
    features = backbone.forward(inputs)
    plain = backbone.model(**inputs)
    real = inputs["attention_mask"].bool()
    assert calls == [1]
    assert torch.equal(features.hidden[real], plain.last_hidden_state[real])
    assert torch.equal(features.pooler_output, plain.pooler_output)
    backbone.model = BertModel(backbone.model.config).eval()
    backbone.forward(inputs)
    assert calls == [1]
