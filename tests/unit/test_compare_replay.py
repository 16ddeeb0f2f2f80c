"""The load generator of a comparison against a small server: what is sent, when, and what is noted of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_tools.bench.compare.answers import FAILED, LATE, OK, summary
from fmplex_tools.bench.compare.order import Order
from fmplex_tools.bench.compare.replayer import Replay
from fmplex_tools.bench.compare.texts import Texts
from fmplex_tools.bench.compare.workload import Schedule, Workload, schedule


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each row with its number of words; notes what came when."""

    def __init__(self) -> None:
        self.came: list[tuple[float, Any]] = []
        self.seconds = 0.0
        """Until it answers."""
        self.stall = (0.0, 0.0)
        """Seconds after the first request came: what comes from the one to the other is answered at the other."""
        self.broken = ""
        """A model that answers with an error."""
        self.under_way = self.most_under_way = 0

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.came.append((time.monotonic(), request))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.seconds)
            begins, ends = (self.came[0][0] + after for after in self.stall)
            if begins <= time.monotonic() < ends:
                await asyncio.sleep(ends - time.monotonic())
        finally:
            self.under_way -= 1
        if request.model_name == self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "too busy")
        reply = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name in [output.name for output in request.outputs] or ["info", "probabilities"]:
            reply.outputs.add(name=name, datatype="FP32", shape=[1, 2])
            reply.raw_output_contents.append(np.array([len(texts_of(request)[0].split()), 0.5], "<f4").tobytes())
        return reply

    def texts(self) -> list[str]:
        return [texts_of(request)[0] for _, request in self.came]


def texts_of(request: Any) -> list[str]:
    """The text of each input."""
    found = []
    for content in request.raw_input_contents:
        (size,) = struct.unpack_from("<I", content)
        assert len(content) == 4 + size
        found.append(content[4:].decode())
    return found


@pytest.fixture
def server() -> Iterator[tuple[str, Server]]:
    """``host:port`` and the server."""
    served, started, ports = Server(), threading.Event(), []

    async def serve() -> None:
        listening = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(served, listening)
        ports.append(listening.add_insecure_port("127.0.0.1:0"))
        await listening.start()
        started.set()
        await asyncio.to_thread(ended.wait)
        await listening.stop(0)

    ended = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield f"127.0.0.1:{ports[0]}", served
    ended.set()
    thread.join()


MODELS = ("a", "b", "c")
SOME = Workload(tasks=3, rate=60, seconds=1, lengths="short")


def at(*due: float, tokens: int = 8) -> Schedule:
    """Requests of task 0."""
    return Schedule(np.array(due), np.zeros(len(due), np.int32), np.full(len(due), tokens, np.int32))


def test_the_schedule_is_sent_exactly(server: tuple[str, Server]) -> None:
    url, served = server
    made = schedule(SOME)
    ticks: list[float] = []
    with Replay(url, MODELS, seed=3) as replay:
        found = replay.open(made, keep=5, on_tick=ticks.append)
        again = replay.open(made)
    assert found.requests["due"] == pytest.approx(found.begun + made.due, abs=1e-6)
    assert np.array_equal(found.requests["task"], made.task)
    assert np.array_equal(found.requests["tokens"], made.tokens)
    assert (found.requests["outcome"] == OK).all()
    assert (found.requests["sent"] >= found.requests["due"]).all()
    assert (found.requests["ended"] > found.requests["sent"]).all()
    assert found.cpu_seconds > 0
    assert found.failures == ()
    assert ticks
    assert 0 <= min(ticks) <= max(ticks) <= 1
    assert {number: vector.tolist() for number, vector in found.kept.items()} == {
        number: [made.tokens[number] - 2, 0.5] for number in range(5)
    }
    texts, models = served.texts(), [request.model_name for _, request in served.came]
    first, second = texts[: len(made)], texts[len(made) :]
    assert sorted(first) == sorted(second) == sorted(Texts(3).make(i, int(n)) for i, n in enumerate(made.tokens))
    assert len(set(first)) == len(made)
    assert [models.count(model) for model in MODELS] == [2 * int((made.task == task).sum()) for task in range(3)]
    assert len(again.requests) == len(made)
    (_, request) = served.came[0]
    assert [output.name for output in request.outputs] == ["probabilities"]
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("text", "BYTES", [1, 1])
    ]


def test_a_stall_delays_no_request_and_shows_in_latencies(server: tuple[str, Server]) -> None:
    """Requests that are due while the server stalls are sent then, and their latencies are what was left of it."""
    url, served = server
    served.stall = (0.3, 1.1)
    with Replay(url, ["a"]) as replay:
        found = replay.open(at(*np.arange(0, 1.5, 0.02)))
    came = np.sort([when for when, _ in served.came])
    due, ended = found.requests["due"], found.requests["ended"]
    assert (came >= due).all()
    begins, ends = (came[0] + after for after in served.stall)
    stalled = (came > begins + 0.05) & (came < ends - 0.05)
    assert stalled.sum() > 10  # 35 where nothing else runs
    assert (ended[stalled] >= ends - 1e-3).all()
    assert served.most_under_way > 10
    assert summary(found, warm=0, until=1.5).p95_ms > 600


def test_what_is_not_answered_in_time_is_late_and_counted(server: tuple[str, Server]) -> None:
    url, served = server
    served.stall = (0.25, 60.0)
    with Replay(url, ["a"]) as replay:
        found = replay.open(at(0.0, 0.1, 0.4, 0.5), drain=0.5)
    assert found.requests["outcome"].tolist() == [OK, OK, LATE, LATE]
    late = found.requests[2:]
    assert (late["ended"] - late["due"] >= 0.5).all()
    figures = summary(found, warm=0, until=1)
    assert (figures.requests, figures.failed, figures.late) == (4, 2, 2)
    assert figures.max_ms >= 500


def test_failures_are_told(server: tuple[str, Server]) -> None:
    url, served = server
    served.broken = "b"
    made = Schedule(np.array([0.0, 0.01, 0.02]), np.array([0, 1, 1], np.int32), np.full(3, 8, np.int32))
    with Replay(url, MODELS) as replay:
        found = replay.open(made, keep=3)
    assert found.requests["outcome"].tolist() == [OK, FAILED, FAILED]
    assert found.failures == ("b: UNAVAILABLE: too busy",)
    assert list(found.kept) == [0]


def test_one_model_for_all_tasks(server: tuple[str, Server]) -> None:
    url, served = server
    made = Schedule(np.array([0.0, 0.1]), np.array([1, 0], np.int32), np.array([20, 300], np.int32))
    with Replay(url, ["m", "m"], "task", ["spam", "ham"], output=None) as replay:
        assert (replay.open(made).requests["outcome"] == OK).all()
    requests = [request for _, request in served.came]
    assert [texts_of(request)[1] for request in requests] == ["ham", "spam"]
    assert [len(texts_of(request)[0].split()) for request in requests] == [18, 298]
    assert [tensor.name for tensor in requests[0].inputs] == ["text", "task"]
    assert not requests[0].outputs


def test_closed_loop(server: tuple[str, Server]) -> None:
    """So many under way, never more; tasks and lengths in the schedule's order, over and over, but no text twice."""
    url, served = server
    served.seconds = 0.05
    made = Schedule(np.zeros(4), np.array([0, 1, 2, 1], np.int32), np.array([8, 9, 10, 11], np.int32))
    with Replay(url, MODELS) as replay:
        found = replay.closed(made, clients=3, seconds=1.0)
    count = len(found.requests)
    assert 20 <= count <= 63
    assert served.most_under_way == 3
    assert (found.requests["outcome"] == OK).all()
    assert np.array_equal(found.requests["task"], np.resize(made.task, count))
    assert np.array_equal(found.requests["tokens"], np.resize(made.tokens, count))
    assert np.array_equal(found.requests["due"], found.requests["sent"])
    assert (found.requests["sent"] < found.begun + 1.0).all()
    assert len(set(served.texts())) == len(served.came) == count


def test_closed_loop_that_is_not_answered(server: tuple[str, Server]) -> None:
    url, served = server
    served.stall = (0.0, 60.0)
    with Replay(url, ["a"]) as replay:
        found = replay.closed(at(0.0), clients=2, seconds=0.2, drain=0.3)
    assert found.requests["outcome"].tolist() == [LATE, LATE]
    assert (found.requests["ended"] - found.begun > 0.45).all()
    assert found.failures == ()


def test_leaving_ends_the_process(server: tuple[str, Server]) -> None:
    """As Ctrl-C does: it comes while we wait, and what is under way ends with us."""
    url, _ = server
    replay = Replay(url, ["a"])
    seen: list[subprocess.Popen[bytes]] = []

    def interrupted(_: float) -> None:
        assert replay._process is not None
        seen.append(replay._process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replay:
        replay.open(at(0.0, 60.0), on_tick=interrupted)
    assert seen[0].poll() is not None


@pytest.mark.parametrize("before", ["order", "go", "end"])
def test_it_ends_with_its_input(server: tuple[str, Server], before: str) -> None:
    url, served = server
    order = Order(
        url=url, models=["a"], selector=None, tasks=[], output=None, seed=0,
        due=[0.0, 60.0], task=[0, 0], tokens=[8, 8], drain=1.0,
    )  # fmt: skip
    command = [sys.executable, "-m", "fmplex_tools.bench.compare.replay"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if before != "order":
            process.stdin.write(json.dumps(dataclasses.asdict(order)).encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n"
        if before == "end":
            process.stdin.write(b"go\n")
            process.stdin.flush()
            while not served.came:
                time.sleep(0.01)
        process.stdin.close()
        process.wait(20)
        assert process.stdout.read() == b""


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 names of tasks for 2 models"):
        Replay("x:1", ["m", "m"], "task", ["spam"])
    with pytest.raises(InvalidInput, match="no model"):
        Replay("x:1", [])
    replay = Replay("x:1", ["a"], output=None)
    with pytest.raises(InvalidInput, match="a text of 5 tokens"):
        replay.open(at(0.0, tokens=5))
    with pytest.raises(InvalidInput, match="name it"):
        replay.open(at(0.0), keep=1)
    with pytest.raises(InvalidInput, match="empty schedule"):
        replay.open(at())
    with pytest.raises(InvalidInput, match="task 2, but there are 1 models"):
        replay.open(Schedule(np.zeros(1), np.array([2], np.int32), np.array([8], np.int32)))
    with pytest.raises(InvalidInput, match="0 clients"):
        replay.closed(at(0.0), clients=0, seconds=1)


def test_no_server() -> None:
    with Replay("127.0.0.1:1", ["a"]) as replay, pytest.raises(EngineFailure, match="no gRPC server at"):
        replay.open(at(0.0))
