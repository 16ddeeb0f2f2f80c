"""Pooling, projections and kinds against plain torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.facts import facts_of
from support.recipes import base_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from fmplex_backend.backbones.base import Features
from fmplex_backend.errors import Refused
from fmplex_backend.heads import kinds
from fmplex_backend.heads.kinds import Columns, Part
from fmplex_backend.heads.linear_bank import WIDEST, LinearBank
from fmplex_backend.heads.projections import linear, transformers_head
from fmplex_backend.repository.artifact import Artifact, BackboneRef

LENGTHS = [4, 1, 3]


def artifact(kind: str, **fields: Any) -> Artifact:
    return Artifact(kind=kind, backbone=BackboneRef(name="t", fingerprint="sha256:" + "0" * 64), **fields)  # type: ignore[arg-type]


def answers(raw: Tensor, lengths: list[int], one: Artifact) -> tuple[Columns, list[bool]]:
    """Of rows that are all one vFM's."""
    parts = [Part(one, 0, len(raw), raw.shape[-1])]
    return kinds.answers(one.kind, raw, lengths, parts)[0]


@pytest.fixture
def features() -> Features:
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, 32)
    mask = torch.tensor([[1] * n + [0] * (4 - n) for n in LENGTHS])
    return Features(hidden, mask, {"input_ids": torch.ones(3, 4, dtype=torch.int64), "attention_mask": mask})


def test_pooling_counts_only_a_rows_own_positions(features: Features) -> None:
    for row, n in enumerate(LENGTHS):
        own = features.hidden[row, :n]
        for pooling, wanted in {
            "mean": own.mean(0),
            "cls": own[0],
            "last": own[-1],
            "max": own.amax(0),
            "std": own.std(0, correction=0),
            "cls+mean": torch.cat([own[0], own.mean(0)]),
        }.items():
            torch.testing.assert_close(features.pooled(pooling)[row], wanted)
    changed = features.hidden.clone()
    changed[features.mask == 0] = 1e9
    for pooling in ("mean", "cls", "last", "max", "std", "cls+mean"):
        torch.testing.assert_close(Features(changed, features.mask, {}).pooled(pooling), features.pooled(pooling))
    with pytest.raises(ValueError, match="pooling 'least' is none, or one or more of mean, cls"):
        features.pooled("least")
    with pytest.raises(ValueError, match="tells no levels"):
        features.pooled("mean+levels")


@pytest.mark.parametrize("bias", [True, False])
def test_linear_takes_the_rows_it_is_given(features: Features, bias: bool) -> None:
    parameters = {"weight": torch.randn(5, 32)} | ({"bias": torch.randn(5)} if bias else {})
    project = linear(artifact("regression", pooling="cls"), parameters)
    got = project(features, torch.tensor([2, 0]))
    wanted = features.hidden[[2, 0], 0] @ parameters["weight"].T + parameters.get("bias", 0)
    torch.testing.assert_close(got, wanted)


def test_classification() -> None:
    raw = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 0.0]])
    columns, finite = answers(raw, [3, 3], artifact("classification", labels=("a", "b", "c")))
    assert columns["text"] == [["b"], ["a"]]
    np.testing.assert_allclose(columns["scores"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(columns["scores"][0], np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum(), rtol=1e-6)
    np.testing.assert_array_equal(columns["vector"], raw.numpy())
    assert finite == [True, True]


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(0.5, [["a", "b"], []]), (0.9, [["b"], []]), (0.1, [["a", "b"], ["c"]])]
)
def test_multi_label(threshold: float, wanted: list[list[str]]) -> None:
    raw = torch.tensor([[0.0, 9.0, -9.0], [-9.0, -9.0, -1.0]])
    columns, _ = answers(raw, [1, 1], artifact("multi_label", labels=("a", "b", "c"), threshold=threshold))
    assert columns["text"] == wanted
    np.testing.assert_allclose(columns["scores"], 1 / (1 + np.exp(-raw.numpy())), rtol=1e-5)


def test_embedding() -> None:
    raw = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    columns, _ = answers(raw, [1, 1], artifact("embedding", head="identity", normalize=True))
    np.testing.assert_allclose(columns["vector"], [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    columns, _ = answers(raw, [1, 1], artifact("embedding", head="identity"))
    np.testing.assert_array_equal(columns["vector"], raw.numpy())


def test_tokens_come_without_padding() -> None:
    raw = torch.randn(3, 4, 2)
    raw[1, 1:] = torch.nan  # padding may be anything
    columns, finite = answers(raw, LENGTHS, artifact("token_classification", pooling="none", labels=("x", "y")))
    assert [len(m) for m in columns["matrix"]] == LENGTHS
    assert [len(t) for t in columns["text"]] == LENGTHS
    assert columns["text"][0] == [("x", "y")[i] for i in raw[0].argmax(-1)]
    assert finite == [True, True, True]
    raw[2, 2, 0] = torch.inf
    assert answers(raw, LENGTHS, artifact("token_classification", pooling="none", labels=("x", "y")))[1][2] is False


@pytest.mark.parametrize("kind", ["classification", "multi_label", "regression", "embedding", "token_classification"])
def test_parts_of_different_widths_are_answered_as_if_alone(kind: str) -> None:
    """What lies in columns that are not a part's own, and in rows of others, is void: even if it is not finite."""
    torch.manual_seed(0)
    tokens = kind == "token_classification"
    widths, rows = (2, 4, 3), (2, 1, 3)
    raw = torch.randn(sum(rows), *((5,) if tokens else ()), 4)
    lengths = [5, 2, 1, 4, 3, 5]
    parts, start = [], 0
    for width, count in zip(widths, rows, strict=True):
        labels = tuple("abcd"[:width]) if kind in ("classification", "multi_label", "token_classification") else None
        one = artifact(kind, labels=labels, pooling="none" if tokens else "mean")
        parts.append(Part(one, start, start + count, width))
        raw[start : start + count, ..., width:] = torch.inf if kind != "embedding" else 0
        start += count
    together = kinds.answers(kind, raw, lengths, parts)
    for part, (columns, finite) in zip(parts, together, strict=True):
        own = raw[part.start : part.stop, ..., : part.width]
        wanted, wanted_finite = answers(own, lengths[part.start : part.stop], part.artifact)
        assert finite == wanted_finite
        assert columns.keys() == wanted.keys()
        assert columns.get("text") == wanted.get("text")
        for socket in columns.keys() - {"text"}:
            for got, right in zip(columns[socket], wanted[socket], strict=True):
                np.testing.assert_allclose(got, right, rtol=1e-6)


@settings(max_examples=40)
@given(
    widths=st.lists(st.integers(1, WIDEST), min_size=1, max_size=12),
    pooling=st.sampled_from(["mean", "cls", "none"]),
    bias=st.booleans(),
    data=st.data(),
)
def test_linear_heads_together_equal_each_alone(
    widths: list[int], pooling: str, bias: bool, data: st.DataObject
) -> None:
    torch.manual_seed(len(widths))
    bank = LinearBank()
    hidden, mask = torch.randn(4, 3, 8), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    features = Features(hidden, mask, {})
    heads = {}
    for number, width in enumerate(widths):
        parameters = {"weight": torch.randn(width, 8)} | ({"bias": torch.randn(width)} if bias else {})
        heads[number] = linear(artifact("embedding", pooling=pooling), parameters)
        bank.put(number, heads[number])
        if data.draw(st.booleans()):
            bank.drop(number)
            bank.put(number, heads[number])
    sections = {bank.section(head) for head in heads.values()}
    for section in sections:
        own = [number for number, head in heads.items() if bank.section(head) == section]
        numbers = data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=6))
        rows = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(numbers), max_size=len(numbers))))
        assert section is not None
        raw = bank(section, features, rows, numbers)
        for i, number in enumerate(numbers):
            wanted = heads[number](features, rows[i : i + 1])[0]
            torch.testing.assert_close(raw[i, ..., : widths[number]], wanted, atol=1e-5, rtol=1e-5)
            assert not raw[i, ..., widths[number] :].any()


def test_wide_heads_and_bare_vectors_are_not_stacked() -> None:
    bank = LinearBank()
    assert bank.section(linear(artifact("embedding"), {"weight": torch.zeros(WIDEST + 1, 8)})) is None
    assert bank.section(linear(artifact("embedding", head="identity"), {})) is None


@pytest.mark.parametrize("row", [0, 1])
def test_not_finite_is_told_per_row(row: int) -> None:
    raw = torch.zeros(2, 2)
    raw[row, 1] = torch.nan
    assert answers(raw, [1, 1], artifact("regression"))[1] == [row != 0, row != 1]


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("classification", AutoModelForSequenceClassification),
        ("regression", AutoModelForSequenceClassification),
        ("token_classification", AutoModelForTokenClassification),
    ],
)
def test_transformers_head_is_the_classs_own(tiny_backbone: Path, kind: str, auto: Any) -> None:
    labels = None if kind == "regression" else ("a", "b", "c")
    pooling = "none" if kind == "token_classification" else "mean"
    model = auto.from_pretrained(tiny_backbone, num_labels=len(labels or [0])).eval()
    parameters = {n: p.detach() for n, p in model.named_parameters() if not n.startswith("bert.")}
    backbone = base_model(tiny_backbone)
    made = artifact(kind, labels=labels, head="transformers", adapter=True, pooling=pooling)
    head = transformers_head(made, parameters, facts_of(tiny_backbone), backbone)
    inputs = {"input_ids": torch.randint(5, 30, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    with torch.inference_mode():
        output = backbone(**inputs)
        features = Features(output.last_hidden_state, inputs["attention_mask"], inputs, output.pooler_output)
        got = head(features, torch.tensor([2, 0]))
        wanted = model(**inputs).logits[[2, 0]]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


def test_transformers_head_wants_all_of_its_parameters(tiny_backbone: Path) -> None:
    one = artifact("classification", labels=("a", "b"), head="transformers", adapter=True)
    for parameters, says in (
        ({}, "lacks 'classifier.bias'"),
        ({"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(3)}, "'classifier.bias' has shape"),
        ({"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2), "x": torch.zeros(1)}, "has 'x'"),
    ):
        with pytest.raises(Refused) as caught:
            transformers_head(one, parameters, facts_of(tiny_backbone), base_model(tiny_backbone))
        assert says in str(caught.value)
