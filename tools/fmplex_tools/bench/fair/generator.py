"""The process that sends: ``python -m fmplex_tools.bench.fair.generator``, driven by `load.Load`.

It takes one line of JSON (where to, which streams) on standard input, prints ``ready``, sends from the line ``go``
until the line ``stop`` (or the end of input: whoever started it is gone), waits for what is under way, and writes an
.npz to standard output. Requests are made beforehand, so that sending one costs little: the server needs the cores.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import sys
import time
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fmplex_tools.bench.fair.rows import requests_of
from fmplex_tools.bench.fair.streams import EXPIRED, FAILED, OK, REFUSED, REQUEST, ROW, Stream
from fmplex_tools.bench.keep_time import keep_time

POOL = 64
"""Requests made beforehand for each stream; they are sent in turn, each time with other `FIRST` words."""
PAUSE = 0.02
"""Seconds that a closed loop waits after a refusal."""
WORDS = ("the", "film", "book", "good", "bad", "very", "not", "was", "time", "people", "year", "world", "new", "old")
"""Each of them is one token."""
SPECIAL_TOKENS = 2
FIRST = 3
"""So many words at the start of a text are of four letters, and changed whenever the text is sent again: rows that are
the same would run as one."""
FOUR_LETTERS = tuple(word for word in WORDS if len(word) == 4)


def make_requests(stream: Stream, seed: int) -> list[Any]:
    """`POOL` requests of ``stream`` that ask for ``info`` only."""
    if stream.modality != "text":
        return requests_of(stream.vfm, stream.modality, stream.rows, POOL, seed)
    chance = random.Random(seed)
    requests = []
    for number in range(POOL):
        content = b""
        for row in range(stream.rows):
            tokens = stream.tokens[(number + row) % len(stream.tokens)] if len(stream.tokens) > 1 else stream.tokens[0]
            words = [chance.choice(WORDS) for _ in range(max(1, tokens - SPECIAL_TOKENS))]
            if len(words) >= FIRST:
                words[:FIRST] = chance.choices(FOUR_LETTERS, k=FIRST)
            text = " ".join(words).encode()
            content += struct.pack("<I", len(text)) + text
        request = service_pb2.ModelInferRequest(model_name=stream.vfm, raw_input_contents=[content])
        request.inputs.add(name="text", datatype="BYTES", shape=[stream.rows, 1])
        request.outputs.add(name="info")
        if stream.timeout_us:
            request.parameters["timeout"].int64_param = stream.timeout_us
        requests.append(request)
    chance.shuffle(requests)
    return requests


def vary(request: Any, times: int) -> None:
    """Change the first words of every text in ``request``, which was sent so many times."""
    words = [FOUR_LETTERS[times // len(FOUR_LETTERS) ** place % len(FOUR_LETTERS)] for place in range(FIRST)]
    first = " ".join(words).encode()
    content, place = bytearray(request.raw_input_contents[0]), 0
    while place < len(content):
        (size,) = struct.unpack_from("<I", content, place)
        if size >= len(first):
            content[place + 4 : place + 4 + len(first)] = first
        place += 4 + size
    request.raw_input_contents[0] = bytes(content)


class Generator:
    """Sends the streams and notes what became of every request."""

    def __init__(self, url: str, streams: list[Stream], seed: int) -> None:
        self._url, self._streams, self._seed = url, streams, seed
        self._pools = [make_requests(stream, seed + index) for index, stream in enumerate(streams)]
        self._requests: list[tuple[int, float, float, float, int, int]] = []
        self._rows: list[tuple[int, float, float, int]] = []
        self._failures: list[str] = []
        self._under_way: set[asyncio.Task[int]] = set()
        self._stopping = asyncio.Event()

    async def run(self, commands: asyncio.StreamReader) -> bytes:
        """From ``ready`` to the .npz."""
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self._url, options=options) as channel:
            self._call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            await channel.channel_ready()
            print("ready", flush=True)
            if await commands.readline() == b"go\n":
                loops = [
                    asyncio.create_task(loop) for index in range(len(self._streams)) for loop in self._loops(index)
                ]
                await commands.readline()
                self._stopping.set()
                await asyncio.gather(*loops)
                await asyncio.gather(*self._under_way)
        return self._result()

    def _loops(self, index: int) -> list[Any]:
        stream = self._streams[index]
        if stream.in_flight:
            return [self._closed(index, first) for first in range(stream.in_flight)]
        return [self._open(index)]

    async def _closed(self, index: int, first: int) -> None:
        number = first
        while not self._stopping.is_set():
            if await self._send(index, number, time.monotonic()) != OK:
                await asyncio.sleep(PAUSE)
            number += self._streams[index].in_flight

    async def _open(self, index: int) -> None:
        stream, chance = self._streams[index], random.Random(self._seed + index)
        due, number = time.monotonic(), 0
        while not self._stopping.is_set():
            due += chance.expovariate(stream.rate) if stream.poisson else 1 / stream.rate
            try:
                await asyncio.wait_for(self._stopping.wait(), max(0.0, due - time.monotonic()))
            except asyncio.TimeoutError:
                task = asyncio.create_task(self._send(index, number, due))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            number += 1

    async def _send(self, index: int, number: int, due: float) -> int:
        pool = self._pools[index]
        sent = time.monotonic()
        reply = None
        request = pool[number % len(pool)]
        if number >= len(pool) and self._streams[index].modality == "text":
            vary(request, number // len(pool))
        try:
            reply = await self._call(request)
            outcome = OK
        except grpc.aio.AioRpcError as error:
            outcome = self._outcome(index, error)
        ended = time.monotonic()
        if reply is not None:
            self._note_rows(reply.raw_output_contents[0])
        self._requests.append((index, due, sent, ended, self._streams[index].rows, outcome))
        return outcome

    def _outcome(self, index: int, error: Any) -> int:
        message = error.details() or ""
        if "deadline" in message:
            return EXPIRED
        if error.code() == grpc.StatusCode.UNAVAILABLE and "retry in" in message:
            return REFUSED
        if len(self._failures) < 5:
            self._failures.append(f"{self._streams[index].vfm}: {error.code().name}: {message}")
        return FAILED

    def _note_rows(self, content: bytes) -> None:
        place, request = 0, len(self._requests)
        while place < len(content):
            (size,) = struct.unpack_from("<I", content, place)
            info = json.loads(content[place + 4 : place + 4 + size])
            self._rows.append((request, info["queue_us"] / 1e6, info["compute_us"] / 1e6, info["batch_rows"]))
            place += 4 + size

    def _result(self) -> bytes:
        file = io.BytesIO()
        np.savez(
            file,
            requests=np.array(self._requests, REQUEST),
            rows=np.array(self._rows, ROW),
            failures=np.array(self._failures, dtype=str),
        )
        return file.getvalue()


async def _main() -> bytes:
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    order = json.loads(await commands.readline())
    keep_time()
    streams = [Stream(**{**stream, "tokens": tuple(stream["tokens"])}) for stream in order["streams"]]
    return await Generator(order["url"], streams, order["seed"]).run(commands)


if __name__ == "__main__":
    sys.stdout.buffer.write(asyncio.run(_main()))
