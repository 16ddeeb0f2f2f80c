"""From real tritonclient results to typed answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from fmplex_backend.repository.layout import KIND_SOCKETS
from fmplex_client import (
    Classification,
    Embedding,
    MultiLabel,
    Regression,
    ServerError,
    Tensors,
    Token,
    TokenClassification,
)
from fmplex_client.results import parse
from fmplex_client.tasks import OUTPUTS, Task, kind_of, members_of
from fmplex_client.wire import decode


def texts(rows: list[list[str]]) -> Any:
    return np.array([[cell.encode() for cell in row] for row in rows], dtype=np.object_)


def floats(rows: Any) -> Any:
    return np.array(rows, dtype=np.float32)


def info(*objects: dict[str, Any]) -> Any:
    return texts([[json.dumps(item)] for item in objects])


def raw(tensor: Any) -> bytes:
    if tensor.dtype == np.object_:
        return bytes(serialize_byte_tensor(tensor).item())
    return bytes(tensor.tobytes())


def http_result(tensors: dict[str, Any]) -> Any:
    """An InferResult of tritonclient.http as it is read from a response's body."""
    outputs = [
        {
            "name": name,
            "datatype": np_to_triton_dtype(tensor.dtype),
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(raw(tensor))},
        }
        for name, tensor in tensors.items()
    ]
    header = json.dumps({"model_name": "x", "model_version": "1", "outputs": outputs}).encode()
    body = header + b"".join(raw(tensor) for tensor in tensors.values())
    return tritonclient.http.InferenceServerClient.parse_response_body(body, header_length=len(header))


def grpc_result(tensors: dict[str, Any]) -> Any:
    """An InferResult of tritonclient.grpc as it is made of a response message."""
    response = service_pb2.ModelInferResponse(model_name="x", model_version="1")
    for name, tensor in tensors.items():
        response.outputs.add(name=name, datatype=np_to_triton_dtype(tensor.dtype), shape=tensor.shape)
        response.raw_output_contents.append(raw(tensor))
    return tritonclient.grpc.InferResult(response)


@pytest.mark.parametrize("wrap", [http_result, grpc_result])
def test_both_protocols_give_the_same_tensors(wrap: Any) -> None:
    sent = {"label": texts([["pos"], ["neg"]]), "probabilities": floats([[0.1, 0.9], [0.8, 0.2]])}
    got = decode(wrap(sent)).tensors
    assert got.keys() == sent.keys()
    for name, tensor in sent.items():
        assert got[name].dtype == tensor.dtype
        np.testing.assert_array_equal(got[name], tensor)


def test_names_are_those_that_fmplex_gives_its_ensembles() -> None:
    assert {name for outputs in KIND_SOCKETS.values() for name in outputs} | {"info"} == OUTPUTS
    for kind, outputs in KIND_SOCKETS.items():
        assert kind_of(outputs) == kind


def test_classification() -> None:
    first, second = parse(
        {
            "label": texts([["pos"], ["neg"]]),
            "probabilities": floats([[0.25, 0.75], [0.5, 0.5]]),
            "logits": floats([[0, 1], [0, 0]]),
            "info": info({"vfm": "a", "version": 3}, {"vfm": "a", "version": 3}),
        },
        2,
    )
    assert isinstance(first, Classification)
    assert isinstance(second, Classification)
    assert (first.label, first.score, first.info) == ("pos", 0.75, {"vfm": "a", "version": 3})
    assert (second.label, second.score) == ("neg", 0.5)


def test_probabilities_that_are_not_mapped_are_the_softmax_of_the_logits() -> None:
    [answer] = parse({"label": texts([["b"]]), "logits": floats([[1000.0, 1001.0]])}, 1)
    assert isinstance(answer, Classification)
    assert answer.score == pytest.approx(1 / (1 + np.exp(-1)))
    assert answer.info is None


def test_multi_label_gives_each_label_its_own_score_without_the_padding() -> None:
    none, two = parse(
        {"labels": texts([["", ""], ["b", "d"]]), "probabilities": floats([[0.1] * 4, [0.2, 0.6, 0.3, 0.9]])}, 2
    )
    assert isinstance(none, MultiLabel)
    assert isinstance(two, MultiLabel)
    assert (none.labels, none.scores) == ((), ())
    assert two.labels == ("b", "d")
    assert two.scores == pytest.approx((0.6, 0.9))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8, unique=True), st.floats(0.05, 0.95))
def test_multi_label_scores_are_those_over_the_threshold(probabilities: list[float], threshold: float) -> None:
    given_labels = [f"label{i}" for i, p in enumerate(probabilities) if p >= threshold]
    padded = given_labels + [""] * (len(probabilities) + 1 - len(given_labels))
    [answer] = parse({"labels": texts([padded]), "probabilities": floats([probabilities])}, 1)
    assert isinstance(answer, MultiLabel)
    assert answer.labels == tuple(given_labels)
    assert answer.scores == pytest.approx([p for p in probabilities if p >= threshold])


def test_regression_and_embedding() -> None:
    [one] = parse({"values": floats([[0.5]])}, 1)
    assert isinstance(one, Regression)
    assert one.value == 0.5
    [several] = parse({"values": floats([[1, 2]])}, 1)
    assert isinstance(several, Regression)
    with pytest.raises(ValueError, match="2 targets"):
        _ = several.value
    [vector] = parse({"embedding": floats([[3, 4]])}, 1)
    assert isinstance(vector, Embedding)
    assert vector.vector.tolist() == [3, 4]


def token_answer(labels: list[str], offsets: list[list[int]] | None, width: int) -> TokenClassification:
    tensors = {
        "token_labels": texts([labels + [""] * (width - len(labels))]),
        "token_scores": floats([[0.5] * len(labels) + [0.0] * (width - len(labels))]),
        "logits": floats(np.zeros((1, width, 3))),
    }
    if offsets is not None:
        tensors["info"] = info({"vfm": "ner", "offsets": offsets})
    [answer] = parse(tensors, 1)
    assert isinstance(answer, TokenClassification)
    return answer


def test_tokens_have_offsets_and_special_tokens_are_left_out() -> None:
    answer = token_answer(["O", "B-PER", "I-PER", "O"], [[0, 0], [0, 3], [4, 9], [0, 0]], width=6)
    assert answer.tokens == (Token("B-PER", 0.5, 0, 3), Token("I-PER", 0.5, 4, 9))
    assert answer.spans == (Token("PER", 0.5, 0, 9),)
    assert answer.logits is not None
    assert answer.logits.shape == (4, 3)


def test_tokens_without_info_have_no_offsets() -> None:
    answer = token_answer(["O", "X"], None, width=4)
    assert [token.label for token in answer.tokens] == ["O", "X"]
    assert answer.tokens[0].start is None


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["B-A", "I-A", "B-A"], ["A", "A"]),
        (["I-A", "I-B", "O", "I-B"], ["A", "B", "B"]),
        (["NAME", "NAME", "O", "NAME"], ["NAME", "NAME"]),
        (["O", "O"], []),
    ],
)
def test_spans(labels: list[str], spans: list[str]) -> None:
    offsets = [[2 * i, 2 * i + 1] for i in range(len(labels))]
    assert [span.label for span in token_answer(labels, offsets, len(labels)).spans] == spans


@pytest.mark.parametrize("separator", [".", "_", "/"])
def test_bundle_gives_a_result_per_member(separator: str) -> None:
    [answer] = parse(
        {
            f"toxic{separator}label": texts([["no"]]),
            f"toxic{separator}probabilities": floats([[0.9, 0.1]]),
            f"my_topic{separator}labels": texts([["a"]]),
            f"my_topic{separator}probabilities": floats([[0.7, 0.2]]),
            f"vec{separator}embedding": floats([[1, 0]]),
        },
        1,
    )
    assert isinstance(answer, dict)
    assert {member: type(result) for member, result in answer.items()} == {
        "toxic": Classification,
        "my_topic": MultiLabel,
        "vec": Embedding,
    }


def test_other_outputs_come_as_they_are() -> None:
    [answer] = parse({"mask": floats([[1, 2]])}, 1)
    assert isinstance(answer, Tensors)
    assert answer.tensors["mask"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"values": floats([[1], [2]])}, "shape"),
        ({"values": floats([[1]]), "info": texts([["{"]])}, "no JSON"),
        ({"values": floats([[1]]), "info": texts([["[]"]])}, "no JSON object"),
        ({"labels": texts([["a", "b"]]), "probabilities": floats([[0.9]])}, "2 labels for 1"),
    ],
)
def test_an_answer_that_is_none_is_an_error(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        parse(tensors, 1)


def test_task_from_configuration() -> None:
    config: dict[str, Any] = {
        "name": "guard",
        "platform": "ensemble",
        "max_batch_size": 8,
        "input": [{"name": "text"}, {"name": "text_pair"}],
        "output": [{"name": "a.label"}, {"name": "a.info"}, {"name": "b.values"}],
    }
    task = Task.from_config(config)
    assert (task.kind, task.members, task.max_batch_size, task.takes_pairs) == ("bundle", ("a", "b"), 8, True)
    assert Task.from_config(config | {"output": [{"name": "values"}]}).kind == "regression"
    assert Task.from_config(config | {"platform": ""}).kind == "model"
    assert members_of(["label", "info", "x.label"]) == {"x": {"label": "x.label"}}
