"""The clients' own logic, against a transport that is a few lines of Python: no server, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_client import (
    AsyncClient,
    Classification,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    Regression,
    Retry,
    ServerError,
    ServerUnavailable,
    UnknownTask,
)
from fmplex_client.rows import chunks, text_tensor
from fmplex_client.wire import Request, Response, host_port, split


class FakeServer:
    """Answers with the length of each text; fails as told. Stands in for either transport."""

    def __init__(self, max_batch_size: int = 4, inputs: tuple[str, ...] = ("text",)) -> None:
        self.max_batch_size = max_batch_size
        self.inputs = inputs
        self.failures: list[Exception] = []
        self.seen: list[Request] = []
        self.timeouts: list[float] = []
        self.configs = 0

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        self.configs += 1
        if model != "len":
            raise UnknownTask(f"Request for unknown model: '{model}' is not found", "404")
        return {
            "name": model,
            "platform": "ensemble",
            "max_batch_size": self.max_batch_size,
            "input": [{"name": name} for name in self.inputs],
            "output": [{"name": "values"}],
        }

    def infer(self, request: Request, timeout: float) -> Response:
        self.seen.append(request)
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)
        if request.rows > self.max_batch_size:
            raise InvalidRequest(f"batch-size must be <= {self.max_batch_size}", "400")
        lengths = [[float(len(row[0]))] for row in request.tensors["text"]]
        return Response({"values": np.array(lengths, dtype=np.float32)})

    def index(self, timeout: float) -> list[dict[str, str]]:
        return [{"name": "len", "version": "1", "state": "READY"}, {"name": "old", "state": "UNAVAILABLE"}]

    def close(self) -> None:
        pass


class AsyncFakeServer:
    """The same, awaited."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        return self.server.config(model, timeout)

    async def infer(self, request: Request, timeout: float) -> Response:
        await asyncio.sleep(0)
        return self.server.infer(request, timeout)

    async def index(self, timeout: float) -> list[dict[str, str]]:
        return self.server.index(timeout)

    async def close(self) -> None:
        pass


Ask = Callable[..., list[Any]]


class Rig:
    """A client (blocking or asyncio) on a fake server; sleeps are recorded, not slept."""

    def __init__(self, server: FakeServer, asynchronous: bool, retry: Retry | None = None) -> None:
        self.slept: list[float] = []
        self.server = server
        self.ask: Ask
        if asynchronous:

            async def nap(seconds: float) -> None:
                self.slept.append(seconds)

            aclient = AsyncClient(retry=retry, sleep=nap, rng=lambda: 0.0)
            aclient._connected = AsyncFakeServer(server)
            self.ask = lambda *args, **kw: asyncio.run(aclient.predict(*args, **kw))
        else:
            client = Client(retry=retry, sleep=self.slept.append, rng=lambda: 0.0)
            client._transport = server
            self.ask = client.predict


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@given(count=st.integers(0, 40), limit=st.integers(1, 16))
def test_split_keeps_order_and_limit(count: int, limit: int) -> None:
    texts = [str(i) for i in range(count)]
    requests = split("m", chunks(("text", "text_pair"), texts, texts[::-1], limit), request_id="id")
    assert all(1 <= request.rows <= limit for request in requests)
    assert [row[0].decode() for request in requests for row in request.tensors["text"]] == texts
    assert [row[0].decode() for request in requests for row in request.tensors["text_pair"]] == texts[::-1]
    assert len({request.request_id for request in requests}) == len(requests)


def test_long_lists_are_rejoined_in_order(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    answers = rig.ask("len", ["x" * i for i in range(11)], request_id="r", expect=Regression)
    assert [answer.value for answer in answers] == list(range(11))
    assert sorted(request.request_id for request in rig.server.seen) == ["r.0", "r.1", "r.2"]
    assert rig.ask("len", []) == []


def test_one_request_keeps_its_id(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    rig.ask("len", ["a"], request_id="r", version="3")
    assert (rig.server.seen[0].request_id, rig.server.seen[0].version) == ("r", "3")


def test_later_is_sent_again_after_the_hinted_wait(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    rig.server.failures = [ServerUnavailable("full; retry in 120 ms", "503"), ServerUnavailable("down")]
    assert rig.ask("len", ["abc"])[0].value == 3
    assert rig.slept == pytest.approx([0.12, 0.05])
    assert rig.server.timeouts == sorted(rig.server.timeouts, reverse=True)


def test_it_gives_up_with_the_servers_words_when_time_is_up(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    rig.server.failures = [ServerUnavailable("full; retry in 5 s", "503")]
    with pytest.raises(ServerUnavailable, match="full") as caught:
        rig.ask("len", ["abc"], timeout=1)
    assert caught.value.status == "503"
    assert not rig.slept


def test_a_last_try_that_is_too_late_tells_why_the_one_before_was_refused(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    rig.server.failures = [ServerUnavailable("down"), DeadlineExceeded("no answer within 0.2 s", "504")]
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.2 s; .*: down") as caught:
        rig.ask("len", ["abc"])
    assert caught.value.status == "504"


def test_retry_can_be_turned_off(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous, Retry(max_attempts=1))
    rig.server.failures = [ServerUnavailable("down")]
    with pytest.raises(ServerUnavailable):
        rig.ask("len", ["abc"])
    assert len(rig.server.seen) == 1


@pytest.mark.parametrize("error", [InvalidRequest("no", "400"), UnknownTask("gone", "404"), ServerError("bad", "500")])
def test_nothing_else_is_sent_again(asynchronous: bool, error: Exception) -> None:
    rig = Rig(FakeServer(), asynchronous)
    rig.ask("len", ["warm"])
    rig.server.failures = [error]
    with pytest.raises(type(error)):
        rig.ask("len", ["abc"])
    assert len(rig.server.seen) == 2
    assert not rig.slept


def test_configuration_is_asked_once_and_again_after_a_change(asynchronous: bool) -> None:
    rig = Rig(FakeServer(max_batch_size=8), asynchronous)
    rig.ask("len", ["a"])
    rig.ask("len", ["a"] * 8)
    assert rig.server.configs == 1
    rig.server.max_batch_size = 2  # as when the operator edits config.pbtxt
    assert len(rig.ask("len", ["a"] * 5)) == 5
    assert rig.server.configs == 2


def test_pairs(asynchronous: bool) -> None:
    rig = Rig(FakeServer(inputs=("text", "text_pair")), asynchronous)
    rig.ask("len", ["a"], text_pairs=["b"])
    assert rig.server.seen[0].tensors["text_pair"][0, 0] == b"b"
    with pytest.raises(InvalidRequest, match="1 texts but 2"):
        rig.ask("len", ["a"], text_pairs=["b", "c"])
    with pytest.raises(InvalidRequest, match="takes text pairs"):
        rig.ask("len", ["a"])
    with pytest.raises(InvalidRequest, match="takes single texts"):
        Rig(FakeServer(), asynchronous).ask("len", ["a"], text_pairs=["b"])


def test_wrong_arguments_are_named(asynchronous: bool) -> None:
    rig = Rig(FakeServer(), asynchronous)
    with pytest.raises(InvalidRequest, match="one string"):
        rig.ask("len", "abc")
    with pytest.raises(InvalidRequest, match=r"texts\[1\] is of type int"):
        rig.ask("len", ["a", 1])
    with pytest.raises(InvalidRequest, match="UTF-8"):
        rig.ask("len", ["\ud800"])
    with pytest.raises(InvalidRequest, match="answers with Regression, not with Classification"):
        rig.ask("len", ["a"], expect=Classification)
    with pytest.raises(UnknownTask, match="'other' is not found"):
        rig.ask("other", ["a"])


def test_tasks_lists_ready_ensembles() -> None:
    client = Client()
    client._transport = FakeServer()
    assert [task.name for task in client.tasks()] == ["len"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "127.0.0.1", ":8000", "host:port"])
def test_url_is_checked(url: str) -> None:
    with pytest.raises(InvalidRequest, match="url"):
        Client(url)
    with pytest.raises(InvalidRequest, match="url"):
        AsyncClient(url)


def test_host_port() -> None:
    assert host_port("[::1]:8000/base/") == ("::1", 8000, "/base")
    assert host_port("triton.local:80") == ("triton.local", 80, "")


def test_text_tensor_is_rows_by_one() -> None:
    tensor = text_tensor(["é", ""], "texts")
    assert tensor.shape == (2, 1)
    assert tensor[0, 0] == "é".encode()


def test_protocol_is_checked() -> None:
    with pytest.raises(InvalidRequest, match="protocol"):
        Client(protocol="ftp")  # type: ignore[arg-type]
