"""The blocking ways to the server. Every method may be called from any thread.

tritonclient's HTTP client runs on gevent and belongs to the thread that made it, so HTTP goes through the standard
library's connections instead, kept in a pool; tritonclient still writes the requests and reads the answers. A gRPC
channel is made for many threads and is used as it is.
"""

from __future__ import annotations

import http.client
import json
import threading
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from fmplex_client.errors import DeadlineExceeded, FMplexClientError, ServerUnavailable, error_from
from fmplex_client.retry import micros
from fmplex_client.wire import CHANNEL_ARGS, Request, Response, decode, encode, host_port, tls, translate


class Transport(Protocol):
    """One attempt each; ``timeout`` in seconds. All raise `FMplexClientError`."""

    def infer(self, request: Request, timeout: float) -> Response:
        """Run one request; the server is told the timeout too."""

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        """Triton's configuration of a model, as JSON."""

    def index(self, timeout: float) -> list[dict[str, str]]:
        """Every model of the repository: ``name``, ``version``, ``state``."""

    def close(self) -> None:
        """Close every connection."""


class HttpTransport:
    """HTTP over a pool of keep-alive connections; as many as there are calls at a time."""

    def __init__(self, url: str) -> None:
        self._host, self._port, self._base = host_port(url)
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def infer(self, request: Request, timeout: float) -> Response:
        """See `Transport`."""
        body, header_length = tritonclient.http.InferenceServerClient.generate_request_body(
            **encode(request, tritonclient.http, micros(timeout))
        )
        version = f"/versions/{quote(request.version, safe='')}" if request.version else ""
        headers = {"Content-Type": "application/octet-stream"}
        if header_length is not None:
            headers["Inference-Header-Content-Length"] = str(header_length)
        path = f"/v2/models/{quote(request.model, safe='')}{version}/infer"
        answer, length = self._call("POST", path, body, headers, timeout)
        return decode(
            tritonclient.http.InferenceServerClient.parse_response_body(
                answer, header_length=None if length is None else int(length)
            )
        )

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        """See `Transport`."""
        answer, _ = self._call("GET", f"/v2/models/{quote(model, safe='')}/config", b"", {}, timeout)
        config: dict[str, Any] = json.loads(answer)
        return config

    def index(self, timeout: float) -> list[dict[str, str]]:
        """See `Transport`."""
        answer, _ = self._call("POST", "/v2/repository/index", b"{}", {}, timeout)
        models: list[dict[str, str]] = json.loads(answer)
        return models

    def close(self) -> None:
        """See `Transport`. Calls still running in other threads end as they would; their connections close then."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _call(
        self, method: str, path: str, body: bytes, headers: dict[str, str], timeout: float
    ) -> tuple[bytes, str | None]:
        connection, reused = self._take()
        try:
            try:
                return self._exchange(connection, method, path, body, headers, timeout)
            except (ConnectionError, http.client.RemoteDisconnected):
                connection.close()
                if not reused:
                    raise
            # The server had closed this idle connection: that says nothing about the server. Once more, on a new one.
            connection = http.client.HTTPConnection(self._host, self._port)
            return self._exchange(connection, method, path, body, headers, timeout)
        except TimeoutError:
            connection.close()
            raise DeadlineExceeded(f"no answer from {self._host}:{self._port} within {timeout:.3g} s") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerUnavailable(f"{self._host}:{self._port}: {error or type(error).__name__}") from None

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        timeout: float,
    ) -> tuple[bytes, str | None]:
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request(method, self._base + path, body, headers)
        response = connection.getresponse()
        answer = response.read()
        self._give_back(connection)
        if response.status != 200:
            raise error_from(str(response.status), _message(answer))
        return answer, response.getheader("Inference-Header-Content-Length")

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._closed:
                raise FMplexClientError("the client is closed")
            if self._idle:
                return self._idle.pop(), True
        return http.client.HTTPConnection(self._host, self._port), False

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


class GrpcTransport:
    """gRPC over one channel."""

    def __init__(self, url: str, tls_ca: str = "") -> None:
        host_port(url)
        self._closed = False
        self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=CHANNEL_ARGS, **tls(tls_ca))

    def infer(self, request: Request, timeout: float) -> Response:
        """See `Transport`."""
        arguments = encode(request, tritonclient.grpc, micros(timeout))
        with self._translated():
            result = self._client.infer(
                request.model, model_version=request.version, client_timeout=timeout, **arguments
            )
        return decode(result)

    def config(self, model: str, timeout: float) -> dict[str, Any]:
        """See `Transport`."""
        with self._translated():
            config: dict[str, Any] = self._client.get_model_config(model, as_json=True, client_timeout=timeout)[
                "config"
            ]
        return config

    def index(self, timeout: float) -> list[dict[str, str]]:
        """See `Transport`."""
        with self._translated():
            answer = self._client.get_model_repository_index(as_json=True, client_timeout=timeout)
        models: list[dict[str, str]] = answer.get("models", [])
        return models

    def close(self) -> None:
        """See `Transport`."""
        self._closed = True
        self._client.close()

    def _translated(self) -> _Translated:
        if self._closed:
            raise FMplexClientError("the client is closed")
        return _Translated()


class _Translated:
    """Inside it, tritonclient's errors become ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InferenceServerException):
            raise translate(error) from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:500]


def connect(url: str, protocol: str, tls_ca: str = "") -> Transport:
    """The transport for ``protocol``."""
    return GrpcTransport(url, tls_ca) if protocol == "grpc" else HttpTransport(url)
