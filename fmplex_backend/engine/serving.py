"""What an engine does with its messages, so that the device has no need to wait.

1. The main thread runs batches, in the order in which they came, and does between them what is quick.
2. A thread of its own hears what comes, and prepares batches for the main thread while others run.
3. Another one reads generations: files are opened and heads are built beside what is served, and taken in between two
   batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from fmplex_backend.engine.measuring import measure
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import (
    DropGeneration,
    GenerationDropped,
    GenerationPinned,
    LoadGeneration,
    Measure,
    Ping,
    PinGeneration,
    Pong,
    RunBatch,
)
from fmplex_backend.transport import Channel

Step = Callable[[], object]
"""Something for the main thread to do; it returns the answer."""


def answer_all(channel: Channel, worker: Worker, device: str) -> None:
    """Answer messages until the channel closes. Raises what an engine cannot go on after."""
    steps: SimpleQueue[Step | None] = SimpleQueue()
    with ThreadPoolExecutor(1, "generations") as reading:
        hearing = threading.Thread(target=_hear, args=(channel, worker, device, reading, steps), daemon=True)
        hearing.start()
        while (step := steps.get()) is not None:
            channel.send(step())


def _hear(
    channel: Channel, worker: Worker, device: str, reading: ThreadPoolExecutor, steps: SimpleQueue[Step | None]
) -> None:
    try:
        while True:
            try:
                message = channel.recv()
            except EOFError:
                steps.put(None)
                return
            if isinstance(message, LoadGeneration):
                reading.submit(_read, worker, message, steps)
            else:
                steps.put(_step(message, worker, device))
    except BaseException as error:  # the main thread must not wait for messages that nobody hears
        steps.put(_raising(error))


def _read(worker: Worker, message: LoadGeneration, steps: SimpleQueue[Step | None]) -> None:
    try:
        loading = worker.read(message)
    except BaseException as error:  # the main thread ends of it, and with it the engine
        steps.put(_raising(error))
    else:
        steps.put(lambda: worker.take(loading))


def _step(message: object, worker: Worker, device: str) -> Step:
    match message:
        case RunBatch():
            prepared = worker.prepare(message)
            return lambda: worker.run_prepared(prepared)
        case DropGeneration(number):
            return lambda: _dropped(worker, number)
        case PinGeneration(number, pinned):
            return lambda: GenerationPinned(number, worker.pin(number, pinned))
        case Measure():
            return lambda: measure(worker.backbone, device, message)
        case Ping():
            return Pong
    raise TypeError(f"no message to an engine: {type(message).__name__}")


def _dropped(worker: Worker, number: int) -> GenerationDropped:
    worker.drop(number)
    return GenerationDropped(number)


def _raising(error: BaseException) -> Step:
    def step() -> object:
        raise error

    return step
