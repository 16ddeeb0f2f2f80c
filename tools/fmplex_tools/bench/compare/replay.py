"""The process that sends: ``python -m fmplex_tools.bench.compare.replay``, driven by `replayer.Replay`.

1. It takes one line of JSON, an `Order`, on standard input, and makes and serializes all that it can beforehand.
2. It prints ``ready`` once it is connected, and sends from the line ``go`` on.
3. Open loop: each request at its time, whatever became of those before. Closed loop: clients that each wait for one.
4. It waits for what is under way, no longer than the drain, and writes an .npz to standard output.

It ends at once where standard input does: whoever started it is gone. The server needs the cores, so requests go out
as bytes and answers stay bytes until the end, and there is no event loop: one thread sleeps until the next request is
due, and gRPC's own thread notes when answers come. (asyncio takes as much CPU or more, and its timers are 1 ms late.)
"""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_tools.bench.compare.answers import FAILED, LATE, OK, REQUEST
from fmplex_tools.bench.compare.order import Order, Requests
from fmplex_tools.bench.keep_time import keep_time

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
CONNECT_SECONDS = 5.0
PAUSE = 0.02
"""Seconds that a closed-loop client waits after a failure."""
LOOK_SECONDS = 0.02
MESSAGES = 5


class Log:
    """Times, outcomes and what is kept of the requests of a run, by number."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._rows: dict[int, tuple[float, float, float, int, int, int]] = {}
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._failures: dict[str, None] = {}

    def note(self, number: int, due: float, sent: float, ended: float, outcome: int) -> None:
        """One request, sent and ended."""
        place = number % len(self._order.task)
        self._rows[number] = (due, sent, ended, self._order.task[place], self._order.tokens[place], outcome)

    def keep(self, number: int, reply: bytes) -> None:
        """Keep the answer, if it is among the first `Order.keep`. Raises `EngineFailure` where it is no answer."""
        if number >= self._order.keep:
            return
        answer = service_pb2.ModelInferResponse.FromString(reply)
        for tensor, content in zip(answer.outputs, answer.raw_output_contents, strict=True):
            if tensor.name == self._order.output and tensor.datatype == "FP32" and content:
                self._kept[number] = np.frombuffer(content, "<f4")
                return
        raise EngineFailure(f"{answer.model_name} answered without an FP32 {self._order.output!r}")

    def failed(self, number: int, error: Any) -> None:
        """Keep the message, if it is a new one and not one of too many."""
        model = self._order.models[self._order.task[number % len(self._order.task)]]
        if len(self._failures) < MESSAGES:
            self._failures[f"{model}: {error.code().name}: {error.details()}"] = None

    def as_npz(self, begun: float, cpu_seconds: float) -> bytes:
        """All of it, requests by number."""
        kept = sorted(self._kept)
        file = io.BytesIO()
        np.savez(
            file,
            requests=np.array([self._rows[number] for number in sorted(self._rows)], REQUEST),
            begun=begun,
            cpu_seconds=cpu_seconds,
            failures=np.array(list(self._failures), dtype=str),
            kept=np.array(kept, np.int64),
            sizes=np.array([len(self._kept[number]) for number in kept], np.int64),
            values=np.concatenate([np.empty(0, np.float32), *(self._kept[number] for number in kept)]),
        )
        return file.getvalue()


def open_loop(order: Order, call: Any, requests: list[bytes], begun: float, log: Log) -> None:
    """Send each request at its time, then wait for answers until the drain is over."""
    sent, ended, calls = [0.0] * len(requests), [0.0] * len(requests), []

    def noting(number: int) -> Any:
        def done(_: Any) -> None:
            ended[number] = time.monotonic()

        return done

    due = [begun + seconds for seconds in order.due]
    for number, request in enumerate(requests):
        if (wait := due[number] - time.monotonic()) > 0:
            time.sleep(wait)
        sent[number] = time.monotonic()
        calls.append(call.future(request))
        calls[-1].add_done_callback(noting(number))
    end = due[-1] + order.drain
    for number in range(len(calls)):
        while not ended[number] and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
    given_up, came = time.monotonic(), list(ended)  # a copy: what comes from now on is late
    for number, sending in enumerate(calls):
        if not came[number]:
            sending.cancel()
            log.note(number, due[number], sent[number], given_up, LATE)
        elif sending.code() is grpc.StatusCode.OK:
            log.note(number, due[number], sent[number], came[number], OK)
            log.keep(number, sending.result())
        else:
            log.note(number, due[number], sent[number], came[number], FAILED)
            log.failed(number, sending)


def closed_loop(order: Order, call: Any, requests: Requests, begun: float, log: Log) -> None:
    """`Order.clients` threads, each with one request under way, that take numbers in order until the time is over."""
    numbers, lock = itertools.count(), threading.Lock()
    end = begun + order.seconds

    def client() -> None:
        while True:
            with lock:
                number = next(numbers)
            request = requests.make(number)
            sent = time.monotonic()
            if sent >= end:
                return
            outcome = OK
            try:
                call(request, timeout=end + order.drain - sent)
            except grpc.RpcError as error:
                outcome = LATE if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else FAILED
                if outcome == FAILED:
                    with lock:
                        log.failed(number, error)
            log.note(number, sent, sent, time.monotonic(), outcome)
            if outcome != OK:
                time.sleep(PAUSE)

    threads = [threading.Thread(target=client) for _ in range(order.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(order: Order) -> bytes | None:
    """From ``ready`` to the .npz; None where nobody says ``go``. Raises `EngineFailure` where nobody listens."""
    requests, log, made = Requests(order), Log(order), []
    if not order.clients:
        made = [requests.make(number) for number in range(len(order.due))]
        keep_time()
    with grpc.insecure_channel(order.url, options=OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise EngineFailure(f"no gRPC server at {order.url}") from None
        call = channel.unary_unary(METHOD)
        gc.collect()
        gc.disable()  # it would stop all threads, ever longer the more there is to keep
        print("ready", flush=True)
        if sys.stdin.buffer.readline() != b"go\n":
            return None
        threading.Thread(target=_end_with_input, daemon=True).start()
        begun, spent = time.monotonic(), time.process_time()
        if order.clients:
            closed_loop(order, call, requests, begun, log)
        else:
            open_loop(order, call, made, begun, log)
        return log.as_npz(begun, time.process_time() - spent)


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _main() -> None:
    line = sys.stdin.buffer.readline()
    if not line:
        return
    try:
        sys.stdout.buffer.write(run(Order(**json.loads(line))) or b"")
    except FMplexError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
