"""Shows 6: what bad input gets is a clear error that names vFM, value and remedy; everything else goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.broken import BROKEN, GOOD, Broken, move_ports
from support.live import LiveServer, ask, tensors, wait_for
from support.recipes import publish, stage, write_ensemble, write_version, write_vfm
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from fmplex_backend.repository.config import ensemble_config, write_config
from fmplex_tools.check_cli import check_fm

pytestmark = pytest.mark.live

FIRST_PORT = 600


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


def refusal(client: Any, name: str, *args: Any, **options: Any) -> str:
    """The error that a request gets; and afterwards another vFM answers as ever."""
    with pytest.raises(InferenceServerException) as caught:
        ask(client, name, *args, client_timeout=30, **options)
    assert ask(client, "bare_two", ["good film"], client_timeout=30)["logits"].shape == (1, 2)
    return str(caught.value)


# ---- requests ----


def request(name: str, shape: list[int], datatype: str) -> list[Any]:
    tensor = grpc.InferInput(name, shape, datatype)
    kind = object if datatype == "BYTES" else np.int32
    tensor.set_data_from_numpy(np.full(shape, b"good" if datatype == "BYTES" else 1, dtype=kind))
    return [tensor]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (request("txt", [1, 1], "BYTES"), ("txt", "lora_qv_4")),
        (request("text", [1, 1], "INT32"), ("'text'", "INT32", "BYTES", "lora_qv_4")),
        (request("text", [2], "BYTES"), ("'text'", "[2]", "lora_qv_4")),
        (request("text", [2, 3], "BYTES"), ("'text'", "[2,3]", "lora_qv_4")),
        (request("text", [1, 1, 1], "BYTES"), ("'text'", "[1,1,1]", "lora_qv_4")),
        (request("text", [65, 1], "BYTES"), ("64", "lora_qv_4")),
        (tensors(grpc, ["good"], ["bad"]), ("lora_qv_4", "got 2")),
        ([], ("lora_qv_4", "got 0")),
    ],
    ids=["name", "dtype", "rank_1", "width", "rank_3", "rows", "pair", "nothing"],
)
def test_wrong_tensors(client: Any, inputs: list[Any], says: tuple[str, ...]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("lora_qv_4", inputs, client_timeout=30)
    for part in says:
        assert part in str(caught.value)
    assert "logits" in ask(client, "bare_two", ["good film"])


@pytest.mark.parametrize(
    ("name", "texts", "says"),
    [
        ("lora_qv_4", [""], ("row 0", "empty")),
        ("lora_qv_4", ["good", " \t\n "], ("row 1", "empty")),
        ("lora_qv_4", ["x" * 65537], ("row 0", "65537 bytes", "65536")),
        ("lora_qv_4", ["good", b"\xff\xfe"], ("row 1", "not valid UTF-8", "byte 0")),
        ("untruncated", ["good " * 40], ("row 0", "42 tokens", "limit is 16", "shorten")),
    ],
    ids=["empty", "blank", "bytes", "utf8", "tokens"],
)
def test_bad_texts(client: Any, name: str, texts: list[Any], says: tuple[str, ...]) -> None:
    error = refusal(client, name, texts)
    for part in (f"vFM '{name}'", *says):
        assert part in error


def test_one_half_of_a_pair(client: Any) -> None:
    assert "pair" in refusal(client, "pair", ["good"])
    assert "row 0: text_pair is empty" in refusal(client, "pair", ["good"], [""])


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([], "is a physical FM: ask for"),
        (["status", "port200.vector"], "ask for its output 'status' alone"),
        (["port900.vector"], "port 900 of physical FM 'minilm' has no vFM"),
        (["port200.matrix"], "does not fill socket 'matrix'"),
        (["port5000.vector"], "port5000.vector"),
    ],
)
def test_asking_the_physical_fm(client: Any, outputs: list[str], says: str) -> None:
    wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
    assert says in refusal(client, "minilm", ["good"], outputs=wanted)


def test_unknown_names(client: Any) -> None:
    assert "'sentimnt'" in refusal(client, "sentimnt", ["good"])
    assert "'logit'" in refusal(client, "lora_qv_4", ["good"], outputs=[grpc.InferRequestedOutput("logit")])


# ---- vFMs ----


@pytest.fixture(scope="module")
def dropped(server: LiveServer) -> Iterator[list[Broken]]:
    """Every broken vFM put into the served repository at once, each by a rename; taken out afterwards."""
    template = stage(server.repository, "template")
    write_version(template / "1", GOOD, server.backbone, seed=1)
    for port, case in enumerate(BROKEN, start=FIRST_PORT):
        staging = stage(server.repository, case.name)
        shutil.copytree(template, staging, dirs_exist_ok=True)
        write_ensemble(staging, port, GOOD, server.backbone)
        case.breaks(staging)
        publish(staging, server.repository / case.name)
    names = {case.name for case in BROKEN}
    wait_for(lambda: names <= {v["name"] for v in server.status()["vfms"] if v["reason"]}, "all are refused")
    with grpc.InferenceServerClient(server.grpc) as triton:
        heard = [case.name for case in BROKEN if case.client_hears_it]
        wait_for(lambda: all(triton.is_model_ready(name) for name in heard), "Triton has polled them")
    yield list(BROKEN)
    for name in names:
        os.rename(server.repository / name, stage(server.repository, f"removed-{name}"))
    wait_for(lambda: not names & {v["name"] for v in server.status()["vfms"]}, "all are gone")


@pytest.fixture(scope="module")
def reasons(server: LiveServer, dropped: list[Broken]) -> dict[str, dict[str, Any]]:
    """Their records in the server's status."""
    return {vfm["name"]: vfm for vfm in server.status()["vfms"]}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_broken_vfm(server: LiveServer, client: Any, reasons: dict[str, dict[str, Any]], case: Broken) -> None:
    record = reasons[case.name]
    assert record["state"] == "refused"
    for part in (case.name, *case.says):
        assert part in record["reason"]
    assert str(server.repository) not in record["reason"], "errors name no path of the server's"
    error = refusal(client, case.name, ["good film"])
    assert case.name in error
    if case.client_hears_it:
        assert record["reason"] in error


def test_everything_else_still_serves(reasons: dict[str, dict[str, Any]]) -> None:
    broken = {case.name for case in BROKEN}
    others = {name: record["state"] for name, record in reasons.items() if name not in broken}
    assert set(others.values()) == {"serving"}, others


def test_fmplex_check_says_the_same(server: LiveServer, reasons: dict[str, dict[str, Any]]) -> None:
    checked = {vfm["name"]: vfm for vfm in check_fm(server.repository, "minilm")["vfms"]}
    assert {name: vfm["reason"] for name, vfm in checked.items()} == {n: v["reason"] for n, v in reasons.items()}
    assert {name: vfm["state"] for name, vfm in checked.items()} == {n: v["state"] for n, v in reasons.items()}


# ---- ports ----


@pytest.fixture
def put(server: LiveServer) -> Iterator[Callable[[str, int], Path]]:
    """Puts a good vFM on a port; taken out at the end."""
    names = []

    def put(name: str, port: int) -> Path:
        names.append(name)
        return write_vfm(server.repository, name, port, GOOD, server.backbone, seed=port)

    yield put
    for name in names:
        if (server.repository / name).exists():
            os.rename(server.repository / name, stage(server.repository, f"removed-{name}"))


def test_two_on_one_port(server: LiveServer, client: Any, put: Callable[[str, int], Path]) -> None:
    put("first", 700)
    server.wait_serving("first")
    second = put("second", 700)
    refused = wait_for(lambda: _refused(server, "first"), "'first' refused")
    assert "'first' and 'second' both map port 700" in refused
    assert "give one port 0" in refused or "give one port" in refused
    assert _refused(server, "second") == refused
    with grpc.InferenceServerClient(server.grpc) as triton:
        wait_for(lambda: triton.is_model_ready("second"), "Triton has 'second'")
    for name in ("first", "second"):
        assert "both map port 700" in refusal(client, name, ["good film"])
    move_ports(701)(second)  # heals both
    server.wait_serving("first")
    server.wait_serving("second")
    wait_for(lambda: _answered_by(client, "second"), "'second' answers on its own port")
    assert ask(client, "first", ["good film"])["info"][0]["vfm"] == "first"


def _refused(server: LiveServer, name: str) -> str | None:
    record = server.vfm(name)
    return record["reason"] if record is not None and record["state"] == "refused" else None


def _answered_by(client: Any, name: str) -> bool:
    try:
        return bool(ask(client, name, ["good film"])["info"][0]["vfm"] == name)
    except InferenceServerException:
        return False


def test_bundle_with_a_port_that_has_no_vfm(server: LiveServer, client: Any) -> None:
    outputs = {"one": (200, "vector"), "none": (777, "vector")}
    config: ModelConfig = ensemble_config("minilm", outputs, {"one": [-1], "none": [-1]})
    staging = stage(server.repository, "half_bundle")
    (staging / "1").mkdir()
    write_config(staging / "config.pbtxt", config)
    publish(staging, server.repository / "half_bundle")
    try:
        reason = wait_for(lambda: _refused(server, "half_bundle"), "the bundle is refused")
        assert reason == "bundle 'half_bundle': port 777 has no vFM"
        with grpc.InferenceServerClient(server.grpc) as triton:
            wait_for(lambda: triton.is_model_ready("half_bundle"), "Triton has it")
        assert "port 777 of physical FM 'minilm' has no vFM" in refusal(client, "half_bundle", ["good film"])
    finally:
        os.rename(server.repository / "half_bundle", stage(server.repository, "removed-bundle"))


def test_more_rows_than_the_queue_holds(server: LiveServer, client: Any) -> None:
    write_vfm(server.repository, "narrow", 710, GOOD, server.backbone, parameters={"max_queue_size": "2"})
    try:
        server.wait_serving("narrow")
        assert ask(client, "narrow", ["good", "bad"])["logits"].shape == (2, 3)
        error = refusal(client, "narrow", ["good", "bad", "film"])
        assert "INVALID_ARG" in error, "to send it again would never help"
        assert "vFM 'narrow': no room for 3 more rows in its queue" in error
        assert "at most 2 at a time (max_queue_size)" in error
    finally:
        os.rename(server.repository / "narrow", stage(server.repository, "removed-narrow"))
