"""A live server as tests see it: where it listens, what it says of itself, requests to it, and load on it."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.serving import fetch_status

FM = "minilm"
Text = str | bytes
PATIENCE = 120
"""Seconds after which a test takes what has not come for what never comes. Nothing is said of how fast it should be:
the machine may have other work, and a hundred things wait."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class LiveServer:
    """Endpoints as ``127.0.0.1:PORT``."""

    http: str
    grpc: str
    metrics: str
    repository: Path
    pid: int
    backbone: Path
    """Folder of the physical FM's backbone."""

    def status(self) -> dict[str, Any]:
        """What the physical FM says of itself."""
        return fetch_status(self.http, FM, timeout=30)

    def vfm(self, name: str) -> dict[str, Any] | None:
        """Its record in the status; None where there is none."""
        return next((vfm for vfm in self.status()["vfms"] if vfm["name"] == name), None)

    def wait_serving(self, name: str, **expected: Any) -> dict[str, Any]:
        """Wait until Triton has the ensemble ``name`` and the host serves it, with ``expected`` in its record."""

        def look() -> dict[str, Any] | None:
            record = self.vfm(name)
            good = record is not None and record["state"] == "serving"
            return record if good and all(record.get(k) == v for k, v in expected.items()) else None

        record = wait_for(look, f"{name!r} serving {expected}")
        with grpc.InferenceServerClient(self.grpc) as client:
            wait_for(lambda: client.is_model_ready(name), f"Triton's {name!r} ready")
        return record


def wait_for(look: Callable[[], _T | None], what: str) -> _T:
    """Ask ``look`` until it gives something true. Fails after ``PATIENCE`` seconds."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)
    return found


def ended(process: psutil.Process) -> bool:
    """Whether it does nothing any more, reaped or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def tensors(
    module: Any, texts: Sequence[Text], pairs: Sequence[Text] | None = None, name: str = "text"
) -> list[grpc.InferInput | http.InferInput]:
    """The inputs of a request, for ``module`` tritonclient.grpc or tritonclient.http."""
    columns = {name: texts} | ({} if pairs is None else {"text_pair": pairs})
    inputs = []
    for key, values in columns.items():
        tensor = module.InferInput(key, [len(values), 1], "BYTES")
        rows = [[v.encode() if isinstance(v, str) else v] for v in values]
        tensor.set_data_from_numpy(np.array(rows, dtype=object).reshape(len(rows), 1))
        inputs.append(tensor)
    return inputs


Answer = dict[str, Any]


def ask(client: Any, name: str, texts: Sequence[Text], pairs: Sequence[Text] | None = None, **options: Any) -> Answer:
    """One request over ``client`` (gRPC or HTTP): output name → array. ``info`` comes parsed."""
    module = grpc if isinstance(client, grpc.InferenceServerClient) else http
    reply = client.infer(name, tensors(module, texts, pairs), **options)
    raw = reply.get_response()
    names = [o.name for o in raw.outputs] if module is grpc else [o["name"] for o in raw["outputs"]]
    answer = {key: reply.as_numpy(key) for key in names}
    if "info" in answer:
        answer["info"] = [json.loads(value) for value in answer["info"][:, 0]]
    return answer


def numbers(answer: Answer) -> np.ndarray:
    """The logits, values or embedding of an answer."""
    return next(answer[key] for key in ("logits", "values", "embedding") if key in answer)


TEXTS = (
    "good film",
    "A wonderful film, I loved every minute of it.",
    "Shares fell on Monday as banks sold what they could; nobody bought.",
    "no",
    "The book was not very good, but the film is: it isn't dull, it isn't long, and it ends well.",
    "Ünïcode and numbers: 3.14, 42!",
)
PAIRS = ("bad book", "I did not like it at all.", "Markets rose.", "yes", "A long and dull book about a film.", "42?")


class Load:
    """Requests to ``names`` from ``threads`` clients over gRPC until the block ends; every failure is kept."""

    def __init__(self, server: LiveServer, names: Sequence[str], threads: int = 16, pairs: Sequence[str] = ()) -> None:
        """``pairs``: those of ``names`` that take pairs of texts."""
        self._server, self._names, self._pairs = server, list(names), frozenset(pairs)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, seed: int) -> None:
        with grpc.InferenceServerClient(self._server.grpc) as client:
            start = seed % len(self._names)
            for turn, name in enumerate(itertools.cycle(self._names[start:] + self._names[:start])):
                if self._stop.is_set():
                    return
                rows = 1 + (seed + turn) % 3
                first = (seed + turn) % (len(TEXTS) - rows + 1)
                texts = [text[:40] for text in TEXTS[first : first + rows]]
                try:
                    ask(client, name, texts, texts if name in self._pairs else None, client_timeout=60)
                except InferenceServerException as error:
                    with self._lock:
                        self.failures.append(f"{name}: {error}")
                else:
                    with self._lock:
                        self.answered[name] += 1

    def wait_answers(self, more: int) -> None:
        """Wait until ``more`` further requests were answered: the load is on, or went on."""
        goal = self.answered.total() + more
        wait_for(lambda: self.answered.total() >= goal, f"{more} more answers under load")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_answers(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Fail where a request failed, or where nothing was asked."""
        assert not self.failures, f"{len(self.failures)} failed, e.g. {self.failures[:3]}"
        silent = set(self._names) - set(self.answered)
        assert not silent, f"never answered under load: {silent}"


@contextmanager
def serve(repository: Path, backbone: Path) -> Iterator[LiveServer]:
    """A real tritonserver over ``repository`` on free ports, for as long as the block lasts; it must end by itself."""
    options = ServerOptions(repository, *free_ports(3), drain_seconds=30)
    with TritonServer(options) as server:
        server.wait_ready(240)
        metrics = f"{options.host}:{options.metrics_port}"
        yield LiveServer(options.http, options.grpc, metrics, repository, server.pid, backbone)
    assert server.exit_code == 0, f"tritonserver ended with code {server.exit_code}:\n{server.tail}"
