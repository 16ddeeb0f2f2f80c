"""Deployments that are all up at the same time and take turns: all but one of them are stopped in their tracks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType

from fmplex_tools.bench.compare.started import Started


class Turns:
    """Deployments by name. A context manager: leaving it stops them for good."""

    def __init__(self, start: Callable[[str], AbstractContextManager[Started]]) -> None:
        """``start`` starts the deployment of a name."""
        self._start = start
        self._up: dict[str, tuple[Started, contextlib.ExitStack]] = {}

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.ExitStack() as everything:
            for _, stack in self._up.values():
                everything.push(stack)
            self._up.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._up

    def start(self, name: str) -> None:
        """Start one, and stop it in its tracks. Raises what ``start`` raises."""
        with contextlib.ExitStack() as stack:
            started = stack.enter_context(self._start(name))
            started.pause()
            self._up[name] = started, stack.pop_all()

    def again(self, name: str) -> None:
        """Start one anew, without the requests that it has not yet answered. Raises what ``start`` raises."""
        _, stack = self._up.pop(name)
        stack.close()
        self.start(name)

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[Started]:
        """Let it run. Raises `EngineFailure` where it does not answer any more."""
        started, _ = self._up[name]
        started.resume()
        try:
            started.wait_answer(0)
            yield started
        finally:
            started.pause()
