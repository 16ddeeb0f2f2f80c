"""Sending a schedule to a server, from a process of its own: `replay`."""

from __future__ import annotations

import dataclasses
import io
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_tools.bench.compare.answers import Answers
from fmplex_tools.bench.compare.order import Order
from fmplex_tools.bench.compare.texts import check_tokens
from fmplex_tools.bench.compare.workload import Schedule

Tick = Callable[[float], None]
"""Told now and then the part of the time that is over, 0 to 1."""
TICK_SECONDS = 0.25
GRACE_SECONDS = 30.0
"""What a run may take longer than its seconds and its drain."""


class Replay:
    """One deployment to send to; a context manager, which ends what is under way when it is left.

    Every run has a process of its own, so that nothing of one run is left in the next: the same schedule and seed send
    the same bytes, and no two texts of a run are the same.
    """

    def __init__(
        self,
        url: str,
        models: Sequence[str],
        selector: str | None = None,
        tasks: Sequence[str] = (),
        output: str | None = "probabilities",
        seed: int = 0,
    ) -> None:
        """``url`` is the server's gRPC ``host:port``; task i asks the Triton model ``models[i]``.

        Where one model serves several tasks, ``selector`` names a second input, BYTES [1, 1], that carries
        ``tasks[i]``. ``output`` is the one that is asked for, None all. Texts are drawn from ``seed``. Raises
        `InvalidInput`.
        """
        if not models:
            raise InvalidInput("no model to send to")
        if selector is not None and len(tasks) != len(models):
            raise InvalidInput(f"selector {selector!r}: {len(tasks)} names of tasks for {len(models)} models")
        self._url, self._models, self._output, self._seed = url, list(models), output, seed
        self._selector, self._tasks = selector, list(tasks)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # an order that it did not live to read
                    pipe.close()

    def open(self, schedule: Schedule, drain: float = 10.0, keep: int = 0, on_tick: Tick | None = None) -> Answers:
        """Open loop: send every request when it is due. Blocks.

        What has no answer ``drain`` seconds after the last one was due is `answers.LATE`. The answers of the first
        ``keep`` requests are kept. Raises `InvalidInput`, or `EngineFailure` where the server cannot be reached or the
        process ends early.
        """
        if keep and self._output is None:
            raise InvalidInput("answers are kept of one output; name it")
        order = self._order(schedule, drain, keep=keep)
        return self._run(order, order.due[-1], on_tick)

    def closed(
        self,
        schedule: Schedule,
        clients: int,
        seconds: float,
        on_tick: Tick | None = None,
        drain: float = 10.0,
    ) -> Answers:
        """Closed loop: ``clients`` that wait for each answer draw from the schedule in order, over and over. Blocks.

        A request is due when it is sent. None is sent after ``seconds``; what has no answer ``drain`` seconds later is
        `answers.LATE`. Raises what `open` raises.
        """
        if clients < 1 or seconds <= 0:
            raise InvalidInput(f"{clients} clients for {seconds:g} s; at least 1 client, more than 0 s")
        return self._run(self._order(schedule, drain, clients=clients, seconds=seconds), seconds, on_tick)

    def _order(self, schedule: Schedule, drain: float, keep: int = 0, clients: int = 0, seconds: float = 0.0) -> Order:
        if not len(schedule):
            raise InvalidInput("an empty schedule: more requests a second, or more seconds")
        if schedule.task.max() >= len(self._models):
            raise InvalidInput(f"the schedule has task {schedule.task.max()}, but there are {len(self._models)} models")
        check_tokens(int(schedule.tokens.min()))
        check_tokens(int(schedule.tokens.max()))
        return Order(
            url=self._url, models=self._models, selector=self._selector, tasks=self._tasks, output=self._output,
            seed=self._seed, due=schedule.due.tolist(), task=schedule.task.tolist(), tokens=schedule.tokens.tolist(),
            drain=drain, keep=keep, clients=clients, seconds=seconds,
        )  # fmt: skip

    def _run(self, order: Order, seconds: float, on_tick: Tick | None) -> Answers:
        with tempfile.TemporaryFile() as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fmplex_tools.bench.compare.replay"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            try:
                output = self._converse(self._process, order, seconds, on_tick)
                if output and self._process.wait() == 0:
                    return _read(output, len(self._models))
                words.seek(0)
                said = words.read().decode(errors="replace").strip()[-600:]
                raise EngineFailure(f"the load process ended with code {self._process.wait()}: {said}")
            finally:
                self.__exit__()

    @staticmethod
    def _converse(process: subprocess.Popen[bytes], order: Order, seconds: float, on_tick: Tick | None) -> bytes:
        """What it writes at the end; nothing where it ends before. Raises `EngineFailure` where it does not end."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(order)).encode() + b"\n")
            process.stdin.flush()
            if process.stdout.readline() != b"ready\n":
                return b""
            process.stdin.write(b"go\n")
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        begun = time.monotonic()
        while not select.select([process.stdout], [], [], TICK_SECONDS)[0]:
            passed = time.monotonic() - begun
            if passed > seconds + order.drain + GRACE_SECONDS:
                raise EngineFailure(f"the load process has not ended {passed:.0f} s after it began")
            if on_tick is not None:
                on_tick(min(1.0, passed / seconds) if seconds else 1.0)
        return process.stdout.read()


def _read(output: bytes, tasks: int) -> Answers:
    with np.load(io.BytesIO(output)) as file:
        vectors = np.split(file["values"], np.cumsum(file["sizes"])[:-1]) if len(file["kept"]) else []
        return Answers(
            requests=file["requests"],
            begun=float(file["begun"]),
            tasks=tasks,
            kept=dict(zip(file["kept"].tolist(), vectors, strict=True)),
            failures=tuple(str(message) for message in file["failures"]),
            cpu_seconds=float(file["cpu_seconds"]),
        )
