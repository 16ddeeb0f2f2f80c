"""What `replayer` asks of the process that sends, and the requests that this makes of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from fmplex_tools.bench.compare.texts import Texts


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to send where; `Replay` says what each means."""

    url: str
    models: list[str]
    selector: str | None
    tasks: list[str]
    output: str | None
    seed: int
    due: list[float]
    task: list[int]
    tokens: list[int]
    drain: float
    keep: int = 0
    clients: int = 0
    """0: open loop."""
    seconds: float = 0.0
    """Of a closed loop."""


class Requests:
    """Serialized ModelInferRequests of one row; only the text differs between those of a task and a length."""

    def __init__(self, order: Order) -> None:
        self._order, self._texts = order, Texts(order.seed)
        self._around: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def make(self, number: int) -> bytes:
        """Request ``number``; beyond the schedule's end its tasks and lengths come again, with other texts."""
        place = number % len(self._order.task)
        task, tokens = self._order.task[place], self._order.tokens[place]
        text = self._texts.make(number, tokens).encode()
        if (task, tokens) not in self._around:
            self._around[task, tokens] = self._template(task, len(text))
        before, after = self._around[task, tokens]
        return before + text + after

    def _template(self, task: int, size: int) -> tuple[bytes, bytes]:
        """What comes before and after a text of ``size`` bytes."""
        text = b"\xff" * size  # bytes that no name has
        request = service_pb2.ModelInferRequest(model_name=self._order.models[task])
        request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<I", size) + text)
        if self._order.selector is not None:
            name = self._order.tasks[task].encode()
            request.inputs.add(name=self._order.selector, datatype="BYTES", shape=[1, 1])
            request.raw_input_contents.append(struct.pack("<I", len(name)) + name)
        if self._order.output is not None:
            request.outputs.add(name=self._order.output)
        before, _, after = request.SerializeToString().partition(text)
        return before, after
