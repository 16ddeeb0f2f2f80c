"""The Python client and its examples against the real server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fmplex_client import (
    AsyncClient,
    Classification,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ServerUnavailable,
    UnknownTask,
)
from fmplex_client.wire import Protocol

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "clients/examples"
TASKS = ("review_polarity", "news_topic", "newsgroup_tags", "tweet_intensity", "news_embedding", "guardrail")
TEXTS = [
    "Great phone, excellent sound and the battery lasts for days. I love it.",
    "Shares fell on Monday as banks sold.",
    "Terrible. It broke after one day, the support is awful and I want my money back.",
]
PROTOCOLS = get_args(Protocol)


def url(server: Any, protocol: str) -> str:
    """Where the fixture's server listens for ``protocol``."""
    return str(getattr(server, protocol))


def run_example(*command: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a reader of the README would, with this Python."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "clients")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("http_predict.py", ["--url", "{http}"]),
        ("grpc_predict.py", ["--url", "{grpc}"]),
        ("async_predict.py", ["--url", "{http}"]),
        ("async_predict.py", ["--url", "{grpc}", "--protocol", "grpc"]),
        ("raw_tritonclient.py", ["--url", "{http}"]),
        ("curl.sh", ["--url", "{http}"]),
        ("shared_nothing_load.py", ["--url", "{http}", "--requests", "40"]),
        ("shared_nothing_load.py", ["--url", "{grpc}", "--protocol", "grpc", "--requests", "40", "--processes", "2"]),
    ],
)
def test_example(server: Any, name: str, options: list[str]) -> None:
    arguments = [option.format(http=server.http, grpc=server.grpc) for option in options]
    done = run_example("sh" if name.endswith(".sh") else sys.executable, str(EXAMPLES / name), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "ok"


def test_every_example_is_run() -> None:
    listed = {mark.args[1][i][0] for mark in test_example.pytestmark for i in range(len(mark.args[1]))}  # type: ignore[attr-defined]
    listed.add("catalogue_predict.py")  # by test_catalogue_served.py: it needs tasks of the catalogue
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.is_file() and not path.name.startswith("_")}


@pytest.mark.parametrize("name", ["raw_tritonclient.py", "curl.sh"])  # the others wait for one, 30 s
def test_example_says_so_when_there_is_no_server(name: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    done = run_example("sh" if name.endswith(".sh") else sys.executable, str(EXAMPLES / name), "--url", nobody)
    assert done.returncode != 0
    assert "refused" in done.stderr or "connect" in done.stderr


def plain(answer: Any) -> Any:
    """An answer as plain values, its provenance left out, for comparison."""
    if isinstance(answer, dict):
        return {member: plain(result) for member, result in answer.items()}
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in vars(answer).items()
        if key != "info"
    }


def close_to(one: Any, other: Any) -> bool:
    """Equal, floats within 1e-5: another batch may have computed them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close_to(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(close_to(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == pytest.approx(other, abs=1e-5)) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("task", TASKS)
def test_every_way_gives_the_same_answer(server: Any, task: str) -> None:
    async def ask(protocol: Protocol) -> Any:
        async with AsyncClient(url(server, protocol), protocol) as client:
            return [plain(answer) for answer in await client.predict(task, TEXTS)]

    found = []
    for protocol in PROTOCOLS:
        with Client(url(server, protocol), protocol) as client:
            found.append([plain(answer) for answer in client.predict(task, TEXTS)])
        found.append(asyncio.run(ask(protocol)))
    assert len(found) == 4
    assert all(close_to(found[0], other) for other in found[1:])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tasks_and_status(server: Any, protocol: Protocol) -> None:
    with Client(url(server, protocol), protocol) as client:
        ready = {task.name: task for task in client.tasks()}
        assert set(TASKS) <= set(ready)
        assert ready["guardrail"].kind == "bundle"
        assert ready["review_polarity"].kind == "classification"
        assert client.status("minilm")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_list_comes_back_in_order(server: Any, protocol: Protocol) -> None:
    texts = [TEXTS[0] if i % 3 else TEXTS[2] for i in range(150)]
    with Client(url(server, protocol), protocol) as client:
        answers = client.predict("review_polarity", texts, expect=Classification)
    assert [answer.label for answer in answers] == ["positive" if i % 3 else "negative" for i in range(150)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_threads_share_one_client(server: Any, protocol: Protocol) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        for i in range(20):
            good = bool((i + number) % 2)
            [answer] = client.predict("review_polarity", [TEXTS[0] if good else TEXTS[2]], expect=Classification)
            if answer.label != ("positive" if good else "negative"):
                wrong.append((number, i, answer.label))

    with Client(url(server, protocol), protocol) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_are_what_they_are(server: Any, protocol: Protocol) -> None:
    with Client(url(server, protocol), protocol) as client:
        with pytest.raises(UnknownTask, match="no_such_task"):
            client.predict("no_such_task", ["text"])
        with pytest.raises(InvalidRequest, match="review_polarity"):
            client.predict("review_polarity", [""])
        with pytest.raises(InvalidRequest, match="minilm"):
            client.predict("minilm", ["text"])
        with pytest.raises(InvalidRequest, match="single texts"):
            client.predict("review_polarity", ["text"], text_pairs=["text"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_deadline_that_nobody_can_meet(server: Any, protocol: Protocol) -> None:
    with Client(url(server, protocol), protocol) as client:
        client.predict("review_polarity", ["warm"])
        with pytest.raises(DeadlineExceeded):
            client.predict("review_polarity", ["text"] * 64, timeout=0.0005)
        assert client.predict("review_polarity", [TEXTS[0]], expect=Classification)[0].label == "positive"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_starts_late_is_waited_for(server: Any, protocol: Protocol) -> None:
    port = free_port()
    with Client(f"127.0.0.1:{port}", protocol, timeout=15) as client:
        with pytest.raises(ServerUnavailable):
            client.predict("review_polarity", ["text"], timeout=0.4)
        start = time.monotonic()
        with forwarding(port, url(server, protocol), after=1.0):
            [answer] = client.predict("review_polarity", [TEXTS[0]], expect=Classification)
            client.close()
    assert answer.label == "positive"
    assert time.monotonic() - start >= 1.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def forwarding(port: int, target: str, after: float) -> Iterator[None]:
    """The real server at another port, from ``after`` seconds on: what a server that starts late looks like."""
    host, _, target_port = target.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    open_sockets = [listener]
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        except OSError:
            pass

    def serve() -> None:
        time.sleep(after)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            onward = socket.create_connection((host, int(target_port)))
            open_sockets.extend((accepted, onward))
            for pair in ((accepted, onward), (onward, accepted)):
                threads.append(threading.Thread(target=pump, args=pair))
                threads[-1].start()

    acceptor = threading.Thread(target=serve)
    acceptor.start()
    try:
        yield
    finally:
        for one in open_sockets:
            with closing(one):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        for thread in (acceptor, *threads):
            thread.join()
