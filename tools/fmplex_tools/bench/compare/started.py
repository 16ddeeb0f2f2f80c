"""A deployment as it runs: started on free ports, warm, asked, measured, stopped."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from fmplex_backend.arrays import Array
from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import LIBRARY_PATH, engine_environment
from fmplex_backend.repository.config import fm_settings
from fmplex_tools.bench.compare.baselines.interface import PROBABILITIES, TEXT
from fmplex_tools.bench.compare.deployments import Deployment, Repository
from fmplex_tools.bench.compare.fence import Fences, make_fences
from fmplex_tools.process_tree import tree
from fmplex_tools.server.install import TritonInstall, find_triton
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports

START_SECONDS, START_SECONDS_PER_TASK = 120.0, 30.0
"""Until the server and all models must be there; a fenced one of 32 loads at a 32nd of the machine's speed."""
ANSWER_SECONDS = 60.0
"""Until a model that is there must have answered."""
WARM_UP = ("warm", "warm up " * 30, "warm up " * 8)
"""Asked of every model, a few times, by a few clients: buffers and caches reach their size."""
_WARM_UP_ROUNDS, _WARM_UP_REQUESTS, _WARM_UP_CLIENTS = 3, 256, 8
"""So many times, but only once where that would be more requests than these; and how many clients ask at a time."""


class Started:
    """A running deployment, from `start`."""

    def __init__(self, deployment: Deployment, repository: Repository, server: TritonServer, fences: Fences | None):
        self.deployment = deployment
        self.repository = repository
        self.fences = fences
        self.ready_seconds = 0.0
        """From the start of tritonserver to the first answer of the last model to give one."""
        self._server = server
        self._client = grpc.InferenceServerClient(server.options.grpc)

    @property
    def url(self) -> str:
        """gRPC ``host:port``."""
        return self._server.options.grpc

    @property
    def http(self) -> str:
        """HTTP ``host:port``."""
        return self._server.options.http

    def ask(self, index: int, texts: Sequence[str], timeout: float = ANSWER_SECONDS) -> Array:
        """One request with a row for each text: probabilities of task ``index``, float32 [texts, labels].

        Raises tritonclient's `InferenceServerException`. May be called from several threads.
        """
        answer = self._client.infer(
            self.repository.models[index],
            request_inputs(self.repository, index, texts),
            outputs=[grpc.InferRequestedOutput(PROBABILITIES)],
            client_timeout=timeout,
        ).as_numpy(PROBABILITIES)
        found: Array = answer[:, : self.repository.labels[index]]
        return found

    def pids(self) -> list[int]:
        """Of tritonserver and all that it started: stubs, host, engines."""
        return [process.pid for process in tree(self._server.pid)]

    def memory(self) -> int:
        """Bytes of all of them, pages that they share counted once (PSS)."""
        total = 0
        for process in tree(self._server.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def cpu_seconds(self) -> float:
        """Processor seconds, user and system, that those of them that are alive have taken so far."""
        total = 0.0
        for process in tree(self._server.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def pause(self) -> None:
        """Let no process of it take any more of the machine until `resume`; nobody may be asking it."""
        for process in tree(self._server.pid):
            process.suspend()

    def resume(self) -> None:
        """Go on; the server last, which would find its models' processes silent."""
        for process in reversed(tree(self._server.pid)):
            process.resume()

    def stop(self) -> None:
        """Stop the server, paused or not; nothing of it is left."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.resume()
        self._client.close()
        self._server.stop()

    def wait_answer(self, index: int, timeout: float = ANSWER_SECONDS) -> None:
        """Until task ``index`` gives its first answer. Raises `EngineFailure` after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.ask(index, WARM_UP[:1], timeout)
                return
            except InferenceServerException as error:
                self._server.check()
                if time.monotonic() > end:
                    task = self.repository.tasks[index]
                    raise EngineFailure(
                        f"{self.deployment.title}: {task!r} does not answer: {error}\n{self._server.tail}"
                    ) from None
            time.sleep(0.01)


@contextmanager
def start(
    deployment: Deployment, source: Path, fm: str, tasks: int, *, seed: int = 0, threads: int = 0
) -> Iterator[Started]:
    """Make the deployment's repository in a folder for the time being and serve it on free ports, every model warm.

    Arguments as of `Deployment.write`, whose errors are raised too. Raises `EngineFailure` where a model does not come.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fmplex-bench-")))
        device = fm_settings(source / fm).engines.partition(",")[0]
        fences = stack.enter_context(make_fences(tasks, device)) if deployment.fenced else None
        members = fences.members if fences else []
        repository = deployment.write(folder, source, fm, tasks, seed=seed, threads=threads, fences=members)
        http, grpc_port, metrics = free_ports(3)
        options = ServerOptions(repository.path, http, grpc_port, metrics, log_level="warning", drain_seconds=3)
        install = BaselineInstall(**vars(find_triton())) if deployment.is_baseline else find_triton()
        begun = time.monotonic()
        server = stack.enter_context(TritonServer(options, install=install))
        started = Started(deployment, repository, server, fences)
        stack.callback(started.stop)
        server.wait_ready(START_SECONDS + START_SECONDS_PER_TASK * tasks)
        for index in range(tasks):
            started.wait_answer(index)
        started.ready_seconds = time.monotonic() - begun
        with ThreadPoolExecutor(_WARM_UP_CLIENTS) as clients:
            for _ in range(_WARM_UP_ROUNDS if _WARM_UP_ROUNDS * tasks <= _WARM_UP_REQUESTS else 1):
                list(clients.map(lambda index: started.ask(index, WARM_UP), range(tasks)))
        yield started


def add_task(started: Started) -> float | None:
    """Add one task while the server runs: seconds from the rename into the repository to its first answer.

    It is then a part of ``started.repository``. None where only a restart could add it. Raises `EngineFailure`.
    """
    if started.deployment.shared:
        return None
    fence = started.fences.add() if started.fences is not None else ""
    if fence is None:
        return None
    made = started.repository
    index, staged = len(made.tasks), made.path.with_name("beside")
    started.deployment.make_model(made, index, staged, fence)
    started.repository = made.with_another()
    begun = time.monotonic()
    os.rename(staged, made.path / started.repository.tasks[index])
    started.wait_answer(index, START_SECONDS)
    return time.monotonic() - begun


def request_inputs(repository: Repository, index: int, texts: Sequence[str]) -> list[Any]:
    """Inputs of a gRPC request to task ``index``, a row for each text."""
    columns = {TEXT: texts}
    if repository.selector is not None:
        columns[repository.selector] = [repository.tasks[index]] * len(texts)
    inputs = []
    for name, values in columns.items():
        tensor = grpc.InferInput(name, [len(values), 1], "BYTES")
        rows = np.array([value.encode() for value in values], dtype=object)
        tensor.set_data_from_numpy(rows.reshape(-1, 1))
        inputs.append(tensor)
    return inputs


class BaselineInstall(TritonInstall):
    """tritonserver for the Python backend, whose stubs run torch themselves: they get what FMplex's engines get."""

    def environment(self) -> dict[str, str]:
        """An engine's, with the server's own paths.

        The server's library path is no harm to torch: the libraries on it have names of their own.
        """
        server = super().environment()
        paths = {key: server[key] for key in ("PATH", "LD_LIBRARY_PATH", LIBRARY_PATH) if key in server}
        return engine_environment() | paths
