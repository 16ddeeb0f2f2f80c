"""The asyncio ways to the server: tritonclient's own two asyncio clients. Use from one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

import aiohttp  # what tritonclient.http.aio runs on; only for its errors
import tritonclient.grpc.aio
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from fmplex_client.errors import DeadlineExceeded, FMplexClientError, ServerUnavailable
from fmplex_client.retry import micros
from fmplex_client.wire import CHANNEL_ARGS, Request, Response, decode, encode, host_port, tls, translate

_T = TypeVar("_T")

CONNECTIONS = 128
"""Most HTTP connections of one client; further calls wait for one, within their timeout."""


class AsyncTransport(Protocol):
    """As `fmplex_client.transport.Transport`, awaited."""

    async def infer(self, request: Request, timeout: float) -> Response:
        """Run one request; the server is told the timeout too."""

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        """Triton's configuration of a model, as JSON."""

    async def index(self, timeout: float) -> list[dict[str, str]]:
        """Every model of the repository: ``name``, ``version``, ``state``."""

    async def close(self) -> None:
        """Close every connection."""


async def _guarded(call: Awaitable[_T], timeout: float) -> _T:
    """Await ``call`` for at most ``timeout`` seconds, with our errors instead of tritonclient's and aiohttp's."""
    try:
        return await asyncio.wait_for(call, timeout)
    except asyncio.TimeoutError:
        raise DeadlineExceeded(f"no answer within {timeout:.3g} s") from None
    except InferenceServerException as error:
        raise translate(error) from None
    except (aiohttp.ClientError, OSError) as error:
        raise ServerUnavailable(str(error) or type(error).__name__) from None


class AsyncHttpTransport:
    """HTTP; made inside a running event loop."""

    def __init__(self, url: str) -> None:
        host_port(url)
        # The client's own limit is for a whole session; each call has its own timeout here.
        self._client = tritonclient.http.aio.InferenceServerClient(url, conn_limit=CONNECTIONS, conn_timeout=None)

    async def infer(self, request: Request, timeout: float) -> Response:
        """See `AsyncTransport`."""
        arguments = encode(request, tritonclient.http, micros(timeout))
        call = self._client.infer(request.model, model_version=request.version, **arguments)
        return decode(await _guarded(call, timeout))

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        """See `AsyncTransport`."""
        config: dict[str, Any] = await _guarded(self._client.get_model_config(model), timeout)
        return config

    async def index(self, timeout: float) -> list[dict[str, str]]:
        """See `AsyncTransport`."""
        models: list[dict[str, str]] = await _guarded(self._client.get_model_repository_index(), timeout)
        return models

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._client.close()


class AsyncGrpcTransport:
    """gRPC; made inside a running event loop."""

    def __init__(self, url: str, tls_ca: str = "") -> None:
        host_port(url)
        self._client = tritonclient.grpc.aio.InferenceServerClient(url, channel_args=CHANNEL_ARGS, **tls(tls_ca))

    async def infer(self, request: Request, timeout: float) -> Response:
        """See `AsyncTransport`."""
        arguments = encode(request, tritonclient.grpc, micros(timeout))
        call = self._client.infer(request.model, model_version=request.version, client_timeout=timeout, **arguments)
        return decode(await _guarded(call, timeout + 1))

    async def config(self, model: str, timeout: float) -> dict[str, Any]:
        """See `AsyncTransport`."""
        call = self._client.get_model_config(model, as_json=True, client_timeout=timeout)
        config: dict[str, Any] = (await _guarded(call, timeout + 1))["config"]
        return config

    async def index(self, timeout: float) -> list[dict[str, str]]:
        """See `AsyncTransport`."""
        call = self._client.get_model_repository_index(as_json=True, client_timeout=timeout)
        models: list[dict[str, str]] = (await _guarded(call, timeout + 1)).get("models", [])
        return models

    async def close(self) -> None:
        """See `AsyncTransport`."""
        await self._client.close()


def connect(url: str, protocol: str, tls_ca: str = "") -> AsyncTransport:
    """The transport for ``protocol``."""
    if asyncio.get_running_loop().is_closed():
        raise FMplexClientError("the event loop is closed")
    return AsyncGrpcTransport(url, tls_ca) if protocol == "grpc" else AsyncHttpTransport(url)
