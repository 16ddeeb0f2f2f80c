"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

from fmplex_client.aio_transport import AsyncTransport, connect
from fmplex_client.calls import (
    check_protocol,
    checked,
    named,
    new_request_id,
    plan,
    should_reread,
    status_of,
    status_request,
)
from fmplex_client.errors import DeadlineExceeded, FMplexClientError, ServerUnavailable
from fmplex_client.results import Answer, Result, parse
from fmplex_client.retry import Deadline, Retry, random_unit, too_late
from fmplex_client.tasks import Task, is_ensemble
from fmplex_client.wire import Protocol, Request, host_port

_T = TypeVar("_T")
_R = TypeVar("_R", bound=Result)


class AsyncClient:
    """As `fmplex_client.Client`, for asyncio; use it from one event loop, with any number of calls at a time::

    async with AsyncClient("127.0.0.1:8001", "grpc") as client:
        answers = await asyncio.gather(*(client.predict("news_topic", [text]) for text in texts))
    """

    def __init__(
        self,
        url: str = "127.0.0.1:8000",
        protocol: Protocol = "http",
        timeout: float = 30.0,
        *,
        token: str = "",
        tls_ca: str = "",
        retry: Retry | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Callable[[], float] = random_unit,
    ) -> None:
        check_protocol(protocol, tls_ca)
        host_port(url)
        self.timeout = timeout
        self._url = url
        self._protocol = protocol
        self._token = token
        self._tls_ca = tls_ca
        self._retry = retry or Retry()
        self._sleep = sleep
        self._rng = rng
        self._connected: AsyncTransport | None = None
        self._closed = False
        self._tasks: dict[str, Task] = {}

    @overload
    async def predict(
        self,
        task: str,
        rows: Sequence[Any],
        *,
        text_pairs: Sequence[str] | None = ...,
        expect: type[_R],
        timeout: float | None = ...,
        request_id: str = ...,
        version: str = ...,
    ) -> list[_R]: ...

    @overload
    async def predict(
        self,
        task: str,
        rows: Sequence[Any],
        *,
        text_pairs: Sequence[str] | None = ...,
        expect: None = ...,
        timeout: float | None = ...,
        request_id: str = ...,
        version: str = ...,
    ) -> list[Any]: ...

    async def predict(
        self,
        task: str,
        rows: Sequence[Any],
        *,
        text_pairs: Sequence[str] | None = None,
        expect: type[Any] | None = None,
        timeout: float | None = None,
        request_id: str = "",
        version: str = "",
    ) -> list[Any]:
        """As `fmplex_client.Client.predict`; the requests of a long list are sent at the same time."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        known = task in self._tasks
        request_id = request_id or new_request_id()

        async def attempt() -> list[Answer]:
            return await self._run(
                plan(await self._task(task, deadline), rows, text_pairs, request_id, version, self._token), deadline
            )

        try:
            answers = await attempt()
        except FMplexClientError as error:
            if not known or not should_reread(error):
                raise
            if not await self._changed(task, deadline):
                raise
            answers = await attempt()
        return checked(task, answers, expect)

    async def task(self, name: str, timeout: float | None = None) -> Task:
        """What the server says of one task now. Raises `UnknownTask`."""
        self._tasks.pop(name, None)
        return await self._task(name, Deadline(self.timeout if timeout is None else timeout))

    async def tasks(self, timeout: float | None = None) -> list[Task]:
        """Every vFM and bundle (every ensemble) that is ready, by name; asks the server once per model."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        index = await self._again(lambda left: self._transport().index(left), deadline)
        names = sorted({item["name"] for item in index if item.get("state") == "READY"})
        configs = await _all(self._config(name, deadline) for name in names)
        return [Task.from_config(config) for config in configs if is_ensemble(config)]

    async def status(self, fm: str, timeout: float | None = None) -> dict[str, Any]:
        """What the physical FM ``fm`` serves, and what it refused and why."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        request = status_request(fm)
        response = await self._again(lambda left: self._transport().infer(request, left), deadline)
        return status_of(fm, response)

    async def close(self) -> None:
        """Close every connection. A call after it raises `FMplexClientError`."""
        self._closed = True
        if self._connected is not None:
            connected, self._connected = self._connected, None
            await connected.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _transport(self) -> AsyncTransport:
        if self._closed:
            raise FMplexClientError("the client is closed")
        if self._connected is None:  # not in __init__: aiohttp and grpc.aio want a running event loop
            self._connected = connect(self._url, self._protocol, self._tls_ca)
        return self._connected

    async def _run(self, requests: Sequence[Request], deadline: Deadline) -> list[Answer]:
        parts = await _all(self._one(request, deadline) for request in requests)
        return [answer for part in parts for answer in part]

    async def _one(self, request: Request, deadline: Deadline) -> list[Answer]:
        with named(request):
            response = await self._again(lambda left: self._transport().infer(request, left), deadline)
            return parse(response.tensors, request.rows)

    async def _again(self, call: Callable[[float], Awaitable[_T]], deadline: Deadline) -> _T:
        failures = 0
        refused: ServerUnavailable | None = None
        while True:
            try:
                return await call(deadline.remaining())
            except DeadlineExceeded as error:
                raise too_late(error, failures, refused) from None
            except ServerUnavailable as error:
                failures, refused = failures + 1, error
                wait = self._retry.delay(failures, error.message, deadline.left(), self._rng)
                if wait is None:
                    raise
                await self._sleep(wait)

    async def _config(self, name: str, deadline: Deadline) -> dict[str, Any]:
        return await self._again(lambda left: self._transport().config(name, left), deadline)

    async def _task(self, name: str, deadline: Deadline) -> Task:
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = Task.from_config(await self._config(name, deadline))
        return task

    async def _changed(self, name: str, deadline: Deadline) -> bool:
        before = self._tasks.pop(name, None)
        return await self._task(name, deadline) != before


async def _all(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run them at the same time; the first error cancels the others and is raised once they have ended."""
    running = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*running))
    except BaseException:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
