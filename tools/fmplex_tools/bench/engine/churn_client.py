"""Clients of a fleet: fixed texts to any of its vFMs over gRPC, some of which give up early."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fmplex_tools.bench.engine.churn_check import Answer
from fmplex_tools.bench.fair.generator import WORDS

LONGEST = 60
"""Words of the longest text."""
MOST_ROWS = 6
OUTPUTS = ("logits", "label", "info")
IMPATIENCE = (0.001, 0.06)
"""Seconds after which a client gives up, at random between these."""
LATEST = 60.0
"""Seconds after which a client that does not give up is told so."""


def make_texts(count: int, seed: int) -> list[str]:
    """``count`` different texts, from one word to `LONGEST`, the same for the same ``seed``."""
    chance = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        words = max(1, round(LONGEST ** (len(texts) / max(1, count - 1))))
        text = " ".join(chance.choice(WORDS) for _ in range(words))
        if text not in texts:
            texts.append(text)
    return texts


@dataclass(frozen=True)
class Impatience:
    """How a client gives up: ``deadline`` of gRPC, ``cancel`` of the call, or Triton's ``timeout`` parameter."""

    way: str
    seconds: float


class GaveUp(Exception):
    """The client cancelled its own call."""


class Caller:
    """Asks vFMs for numbered texts. Used in one event loop; a context manager."""

    def __init__(self, url: str, texts: Sequence[str]) -> None:
        """``url`` is gRPC ``host:port``."""
        self._url = url
        self._rows = [struct.pack("<I", len(text.encode())) + text.encode() for text in texts]

    async def __aenter__(self) -> Caller:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._call = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def ask(self, vfm: str, texts: Sequence[int], impatience: Impatience | None = None) -> Answer:
        """One request, a row for each of ``texts``. Raises `GaveUp` or gRPC's own error."""
        request = service_pb2.ModelInferRequest(model_name=vfm)
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
        request.raw_input_contents.append(b"".join(self._rows[text] for text in texts))
        for name in OUTPUTS:
            request.outputs.add(name=name)
        way, seconds = (impatience.way, impatience.seconds) if impatience else ("", LATEST)
        if way == "timeout":
            request.parameters["timeout"].int64_param = int(1e6 * seconds)
        call = self._call(request, timeout=seconds if way == "deadline" else LATEST)
        if way == "cancel":
            asyncio.get_running_loop().call_later(seconds, call.cancel)
        try:
            reply = await call
        except asyncio.CancelledError:
            if call.cancelled() and way == "cancel":
                raise GaveUp from None
            raise
        return _answer(vfm, texts, reply)


def _answer(vfm: str, texts: Sequence[int], reply: Any) -> Answer:
    contents = {
        output.name: (raw, output.shape) for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    raw, shape = contents["logits"]
    logits = np.frombuffer(raw, np.float32).reshape(shape)
    labels = tuple(value.decode() for value in _strings(contents["label"][0]))
    infos = tuple(json.loads(value) for value in _strings(contents["info"][0]))
    return Answer(vfm, tuple(texts), logits, labels, infos)


def _strings(content: bytes) -> list[bytes]:
    place, found = 0, []
    while place < len(content):
        (size,) = struct.unpack_from("<I", content, place)
        found.append(content[place + 4 : place + 4 + size])
        place += 4 + size
    return found


def draw_impatience(chance: random.Random) -> Impatience | None:
    """None for most requests."""
    way = chance.choices((None, "deadline", "cancel", "timeout"), weights=(85, 5, 5, 5))[0]
    return None if way is None else Impatience(way, chance.uniform(*IMPATIENCE))
