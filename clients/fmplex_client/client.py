"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar, overload

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
from fmplex_client.transport import connect
from fmplex_client.wire import Protocol, Request

_T = TypeVar("_T")
_R = TypeVar("_R", bound=Result)


class Client:
    """Asks tasks for answers, over HTTP or gRPC.

    One client may be used by any number of threads at a time. It opens connections when they are needed, so it can be
    made before the server is up. ``timeout`` (seconds) is how long a call may take in all, retries included, unless
    the call says otherwise. ``token`` is for vFMs that answer only to tokens; it goes with every request.
    ``tls_ca`` is for gRPC to a server with TLS: the PEM file of who vouches for its certificate::

        with Client("127.0.0.1:8000") as client:
            [answer] = client.predict("review_polarity", ["a wonderful film"])
            print(answer.label, answer.score)
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
        sleep: Callable[[float], None] = time.sleep,
        rng: Callable[[], float] = random_unit,
    ) -> None:
        check_protocol(protocol, tls_ca)
        self.timeout = timeout
        self._token = token
        self._retry = retry or Retry()
        self._sleep = sleep
        self._rng = rng
        self._transport = connect(url, protocol, tls_ca)
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}

    @overload
    def predict(
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
    def predict(
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

    def predict(
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
        """One answer per row, in order (see `fmplex_client.results`); a bundle's is a dict, member → result.

        A row is a text or, as the task reads, an image, a sound or a series (see `fmplex_client.rows`).

        A list longer than the task's ``max_batch_size`` is sent as several requests, one after the other. ``expect``
        (e.g. ``Classification``) says which type the answers must have, to you and to the type checker. ``timeout``
        (seconds) is also sent along, so that the server drops rows that nobody waits for any more. ``request_id`` is
        what the server's log calls it, a random one unless given; errors name it.

        Raises `InvalidRequest`, `UnknownTask`, `ServerUnavailable`, `DeadlineExceeded`, `ServerError`.
        """
        deadline = Deadline(self.timeout if timeout is None else timeout)
        known = task in self._tasks
        request_id = request_id or new_request_id()

        def make() -> list[Request]:
            return plan(self._task(task, deadline), rows, text_pairs, request_id, version, self._token)

        try:
            answers = self._run(make(), deadline)
        except FMplexClientError as error:
            if not known or not should_reread(error):
                raise
            # The server may have changed since its configuration was read: once more with what it says now.
            if not self._changed(task, deadline):
                raise
            answers = self._run(make(), deadline)
        return checked(task, answers, expect)

    def task(self, name: str, timeout: float | None = None) -> Task:
        """What the server says of one task now. Raises `UnknownTask`."""
        self._forget(name)
        return self._task(name, Deadline(self.timeout if timeout is None else timeout))

    def tasks(self, timeout: float | None = None) -> list[Task]:
        """Every vFM and bundle (every ensemble) that is ready, by name; asks the server once per model."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        index = self._again(self._transport.index, deadline)
        found = []
        for name in sorted({item["name"] for item in index if item.get("state") == "READY"}):
            config = self._again(lambda left, name=name: self._transport.config(name, left), deadline)  # type: ignore[misc]
            if is_ensemble(config):
                found.append(Task.from_config(config))
        return found

    def status(self, fm: str, timeout: float | None = None) -> dict[str, Any]:
        """What the physical FM ``fm`` serves, and what it refused and why."""
        deadline = Deadline(self.timeout if timeout is None else timeout)
        request = status_request(fm)
        response = self._again(lambda left: self._transport.infer(request, left), deadline)
        return status_of(fm, response)

    def close(self) -> None:
        """Close every connection. A call after it raises `FMplexClientError`."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, requests: Sequence[Request], deadline: Deadline) -> list[Answer]:
        answers: list[Answer] = []
        for request in requests:
            with named(request):
                response = self._again(lambda left, request=request: self._transport.infer(request, left), deadline)  # type: ignore[misc]
                answers += parse(response.tensors, request.rows)
        return answers

    def _again(self, call: Callable[[float], _T], deadline: Deadline) -> _T:
        """``call(remaining seconds)``, sent again while the server says "later" and there is time."""
        failures = 0
        refused: ServerUnavailable | None = None
        while True:
            try:
                return call(deadline.remaining())
            except DeadlineExceeded as error:
                raise too_late(error, failures, refused) from None
            except ServerUnavailable as error:
                failures, refused = failures + 1, error
                wait = self._retry.delay(failures, error.message, deadline.left(), self._rng)
                if wait is None:
                    raise
                self._sleep(wait)

    def _task(self, name: str, deadline: Deadline) -> Task:
        with self._lock:
            task = self._tasks.get(name)
        if task is None:
            task = Task.from_config(self._again(lambda left: self._transport.config(name, left), deadline))
            with self._lock:
                self._tasks[name] = task
        return task

    def _forget(self, name: str) -> Task | None:
        with self._lock:
            return self._tasks.pop(name, None)

    def _changed(self, name: str, deadline: Deadline) -> bool:
        before = self._forget(name)
        return self._task(name, deadline) != before
