"""Clients that ask vFMs all the time and compare every answer with what was recorded before."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http

from fmplex_client import Client
from fmplex_tools.bench.engine.churn_check import TOLERANCE

REQUEST_SECONDS = 120.0
"""Timeout of a request: longer than any start."""
PAUSE = 0.1
"""Seconds after which a client asks again that was told an error: at once it would count nothing but its own haste."""
Answer = np.ndarray[Any, Any]
Ask = Callable[[str, str], Answer]
"""vFM, text → logits."""
TRITONS: dict[str, Any] = {"http": http, "grpc": grpc}
"""Protocol → the module of Triton's own client."""
Known = dict[tuple[str, int], "np.ndarray[Any, Any]"]
"""(vFM, text) → its logits."""


def ask(client: Client, name: str, text: str) -> Answer:
    """The logits."""
    [answer] = client.predict(name, [text])
    return np.asarray(answer.logits)


@contextlib.contextmanager
def ours(url: str, protocol: Any) -> Iterator[Ask]:
    """A client that asks again where that is safe."""
    with Client(url, protocol, timeout=REQUEST_SECONDS) as client:
        yield lambda name, text: ask(client, name, text)


@contextlib.contextmanager
def theirs(url: str, protocol: str) -> Iterator[Ask]:
    """Triton's own, which asks once."""
    module = TRITONS[protocol]
    seconds: dict[str, Any] = {} if module is grpc else {"network_timeout": REQUEST_SECONDS}

    with module.InferenceServerClient(url, **seconds) as client:

        def ask_once(name: str, text: str) -> Answer:
            given = module.InferInput("text", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[text]], dtype=object))
            answer: Answer = client.infer(name, [given]).as_numpy("logits")[0]
            return answer

        yield ask_once


def record(url: str, names: Sequence[str], texts: Sequence[str]) -> Known:
    """What every vFM answers to every text."""
    with Client(url, timeout=REQUEST_SECONDS) as client:
        return {
            (name, number): ask(client, name, text)
            for name, (number, text) in itertools.product(names, enumerate(texts))
        }


@dataclass
class CheckedLoad:
    """One load, of closed loops. What is counted may be read and set to nothing while it goes on."""

    url: str
    names: list[str]
    """Asked at random; may be replaced meanwhile."""
    texts: Sequence[str]
    known: Known
    seed: int = 0
    tolerance: float = TOLERANCE
    client: Callable[[str, Any], contextlib.AbstractContextManager[Ask]] = ours
    answered: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    """Why → requests without an answer within their timeout."""
    slowest: float = 0.0
    """Seconds of the slowest request."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _marked: float | None = None
    _served: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def going_on(self, clients: int, protocols: Sequence[str] = ("http",)) -> Iterator[None]:
        """While the block runs; clients take the ``protocols`` by turns."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._load, args=(number, protocols[number % len(protocols)], stop))
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def begin(self) -> None:
        """Count from nothing."""
        with self._lock:
            self.answered = self.wrong = 0
            self.lost = Counter()
            self.slowest = 0.0

    def mark(self) -> None:
        """From now on `wait_served` waits for an answer to a request that is sent from now on."""
        with self._lock:
            self._served.clear()
            self._marked = time.monotonic()

    def wait_served(self, seconds: float) -> float | None:
        """Seconds since `mark` until there was one; None where there was none in time."""
        assert self._marked is not None
        return time.monotonic() - self._marked if self._served.wait(seconds) else None

    def _load(self, number: int, protocol: Any, stop: threading.Event) -> None:
        chance = random.Random(1000 * self.seed + number)
        with self.client(self.url, protocol) as ask_for:
            while not stop.is_set():
                name, text = chance.choice(self.names), chance.randrange(len(self.texts))
                sent = time.monotonic()
                try:
                    found = ask_for(name, self.texts[text])
                except Exception as error:  # of whatever class a client tells of it by: counted by name
                    with self._lock:
                        self.lost[f"{type(error).__name__}: {error}"] += 1
                    stop.wait(PAUSE)
                    continue
                now = time.monotonic()
                with self._lock:
                    self.answered += 1
                    self.wrong += float(np.abs(found - self.known[name, text]).max()) > self.tolerance
                    self.slowest = max(self.slowest, now - sent)
                    if self._marked is not None and sent > self._marked:
                        self._served.set()
