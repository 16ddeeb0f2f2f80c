"""Requests for what is on no server, at a real Envoy: they wait, and go on by themselves once there is a server."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.live import wait_for
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fmplex_tools.door.keeper import DoorKeeper, Lead
from fmplex_tools.door.xds import Door, Server
from fmplex_tools.server.process import free_ports

pytestmark = pytest.mark.live
BODY = bytes(range(256)) * 12_000
"""3 MB."""


class _Echo(BaseHTTPRequestHandler):
    """A server over HTTP: healthy, and answers with what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._tell(b"ok")

    def do_POST(self) -> None:
        self._tell(self.path.encode() + b" " + self.rfile.read(int(self.headers["Content-Length"])))

    def _tell(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not to the test's output."""


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)


@pytest.fixture
def server() -> Iterator[Server]:
    http_port, grpc_port = free_ports(2)
    http = ThreadingHTTPServer(("127.0.0.1", http_port), _Echo)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    rpc = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(), rpc)
    rpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
    rpc.start()
    yield Server("a", "127.0.0.1", http_port, grpc_port, http_port)
    rpc.stop(None).wait()
    http.shutdown()
    http.server_close()


class Doors:
    """A keeper that can be started anew, over the same Envoy."""

    def __init__(self, folder: Path, longest: float) -> None:
        self.folder, self.longest = folder, longest
        self.port, admin = free_ports(2)
        self.door = Door("127.0.0.1", self.port, admin)
        self.keeper = DoorKeeper(self.door, folder, longest)
        self.number = 0

    def anew(self) -> None:
        self.keeper.close(down=False)
        self.keeper = DoorKeeper(self.door, self.folder, self.longest)

    def lead(self, servers: tuple[Server, ...], on: dict[str, list[str]]) -> None:
        self.number += 1
        self.keeper.lead(Lead(self.number, servers, on))
        wait_for(lambda: self.keeper.report().led == self.number, "the door leads there")

    def post(self, vfm: str) -> bytes:
        url = f"http://127.0.0.1:{self.port}/v2/models/{vfm}/infer"
        with urllib.request.urlopen(urllib.request.Request(url, BODY), timeout=60) as answer:
            found: bytes = answer.read()
            return found

    def call(self, vfm: str) -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return stub.ModelInfer(service_pb2.ModelInferRequest(model_name=vfm, id="7"), timeout=60)


@contextmanager
def doors(folder: Path, longest: float = 60.0) -> Iterator[Doors]:
    made = Doors(folder, longest)
    try:
        yield made
    finally:
        made.keeper.close(down=True)


@contextmanager
def asking(*asks: Callable[[], Any]) -> Iterator[list[Future[Any]]]:
    with ThreadPoolExecutor(len(asks)) as pool:
        yield [pool.submit(ask) for ask in asks]


def test_requests_wait_until_there_is_a_server(tmp_path: Path, server: Server) -> None:
    with doors(tmp_path) as door:
        door.lead((), {"asleep": [], "other": []})
        wait_for(lambda: _opens(door), "the door is open")
        with asking(lambda: door.post("asleep"), lambda: door.call("asleep")) as (over_http, over_grpc):
            wait_for(lambda: door.keeper.report().waiting == ("asleep",), "it is waited for")
            time.sleep(0.5)
            assert not over_http.done()
            assert not over_grpc.done()
            door.lead((server,), {"asleep": ["a"], "other": []})
            assert over_http.result(20) == b"/v2/models/asleep/infer " + BODY
            assert (over_grpc.result(20).model_name, over_grpc.result(20).id) == ("asleep", "7")
        assert door.keeper.report().waiting == ()
        assert door.post("asleep").endswith(BODY)


def test_they_wait_on_while_the_keeper_is_started_anew(tmp_path: Path, server: Server) -> None:
    with doors(tmp_path) as door:
        door.lead((), {"asleep": []})
        wait_for(lambda: _opens(door), "the door is open")
        with asking(lambda: door.post("asleep"), lambda: door.call("asleep")) as answers:
            wait_for(lambda: door.keeper.report().waiting == ("asleep",), "it is waited for")
            door.anew()
            wait_for(lambda: door.keeper.report().waiting == ("asleep",), "it is waited for again")
            door.lead((server,), {"asleep": ["a"]})
            for answer in answers:
                assert answer.result(20)


def test_who_has_waited_long_enough_is_told_so(tmp_path: Path) -> None:
    with doors(tmp_path, longest=0.5) as door:
        door.lead((), {"asleep": []})
        wait_for(lambda: _opens(door), "the door is open")
        with pytest.raises(urllib.error.HTTPError) as http:
            door.post("asleep")
        assert http.value.code == 503
        assert b"vFM 'asleep' is on no server, after 0.5 s" in http.value.read()
        with pytest.raises(grpc.RpcError) as rpc:
            door.call("asleep")
        assert rpc.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "'asleep' is on no server" in rpc.value.details()


def test_a_stream_cannot_wait_and_wakes_all_the_same(tmp_path: Path) -> None:
    with doors(tmp_path) as door, grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        door.lead((), {"asleep": []})
        wait_for(lambda: _opens(door), "the door is open")
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def stream() -> list[Any]:
            asked = threading.Event()

            def requests() -> Iterator[Any]:
                yield service_pb2.ModelInferRequest(model_name="asleep")
                asked.wait(20)

            try:
                return list(stub.ModelStreamInfer(requests(), metadata=[("fmplex-vfm", "asleep")], timeout=30))
            finally:
                asked.set()

        with asking(stream) as [answer]:
            wait_for(lambda: door.keeper.report().waiting == ("asleep",), "it is waited for")
            with pytest.raises(grpc.RpcError) as error:
                answer.result(20)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "retry in 5 s" in error.value.details()


def _opens(door: Doors) -> bool:
    """Whether Envoy answers for what is nowhere, by its routes."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{door.port}/v2/models/nowhere", timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 404 and b"no such vFM" in error.read()
    except OSError:
        pass
    return False
