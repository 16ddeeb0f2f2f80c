"""A client that costs as little as Python can: requests made beforehand, gRPC's own blocking call, no wrapper."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from fmplex_backend.errors import EngineFailure
from fmplex_tools.bench.fair.generator import make_requests
from fmplex_tools.bench.fair.streams import Stream

TIMEOUT = 60.0


@dataclass(frozen=True)
class Answered:
    """One or more requests that were sent together, and all answered."""

    seconds: float
    """Until the last of them was."""
    infos: tuple[dict[str, Any], ...]
    """Of every row of every vFM."""

    @property
    def queue(self) -> float:
        """Seconds in the queue: the longest of any row."""
        return max(float(info["queue_us"]) for info in self.infos) / 1e6

    @property
    def device(self) -> float:
        """Seconds of device time: of each batch once, batches told apart by their time to the microsecond and size."""
        batches = {(info["compute_us"], info["batch_rows"]) for info in self.infos}
        return sum(float(compute) for compute, _ in batches) / 1e6


class LeanClient:
    """One channel to ``url``; a context manager. Raises `EngineFailure` where a request fails."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url, options=[("grpc.max_receive_message_length", -1)])
        self._call = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer

    def __enter__(self) -> LeanClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, request: Any) -> Answered:
        """Send one request and wait for the answer."""
        return self.ask_together([request])

    def ask_together(self, requests: Sequence[Any]) -> Answered:
        """Send all requests at once and wait for the last answer."""
        begun = time.perf_counter()
        try:
            if len(requests) == 1:
                replies = [self._call(requests[0], timeout=TIMEOUT)]
            else:
                calls = [self._call.future(request, timeout=TIMEOUT) for request in requests]
                replies = [call.result() for call in calls]
        except grpc.RpcError as error:
            raise EngineFailure(f"{requests[0].model_name!r} did not answer: {error.details()}") from None
        seconds = time.perf_counter() - begun
        return Answered(seconds, tuple(info for reply in replies for info in infos_of(reply)))


def infos_of(reply: Any) -> Iterator[dict[str, Any]]:
    """What the outputs whose names end in ``info`` tell of each row."""
    for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if not output.name.endswith("info"):
            continue
        place = 0
        while place < len(content):
            (size,) = struct.unpack_from("<I", content, place)
            yield json.loads(content[place + 4 : place + 4 + size])
            place += 4 + size


def requests_for(vfm: str, tokens: int, seed: int, outputs: Sequence[str] = ("logits", "info")) -> list[Any]:
    """Requests of one row to ``vfm``, different texts, that ask for ``outputs``."""
    requests = make_requests(Stream(vfm, (tokens,)), seed)
    for request in requests:
        del request.outputs[:]
        for name in outputs:
            request.outputs.add(name=name)
    return requests
