"""Clients that send malformed requests, over sockets of their own, and tell how each ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]

from fmplex_tools.bench.faults.malformed_grpc import GRPC_KINDS, INFER, OTHERS, STREAM
from fmplex_tools.bench.faults.malformed_http import HTTP_KINDS, INCOMPLETE

ANSWER_SECONDS = 20.0
"""A request hangs that is neither answered nor its connection closed within so many."""
KEPT = 40
"""Requests that are kept, to find out under which of them a server died."""
STREAMED = 4
"""Messages on one stream."""
HANGS = "hangs"


@dataclass
class Sent:
    """What was sent, and how it ended."""

    count: int = 0
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind → how its requests ended: ``HTTP 400``, ``closed``, ``INVALID_ARGUMENT``, `HANGS` …"""
    last: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Kind and beginning of the last ones, in hexadecimal digits."""

    def note(self, kind: str, request: bytes, end: str) -> None:
        """A request of ``kind`` ended so."""
        self.count += 1
        self.ends.setdefault(kind, Counter())[end] += 1
        self.last.append((kind, request[:2000].hex()))

    @property
    def hangs(self) -> int:
        """Requests without an end."""
        return sum(ends[HANGS] for ends in self.ends.values())


class Wire:
    """One HTTP connection, opened anew where it was closed."""

    def __init__(self, address: str) -> None:
        """``address`` is ``host:port``."""
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, *, then_close: bool = False) -> tuple[int, bytes] | None:
        """Send it; status and body of the answer, None where the connection is closed instead.

        ``then_close``: this end of the connection, once it is sent. Raises `asyncio.TimeoutError`.
        """
        try:
            return await asyncio.wait_for(self._ask(request, then_close), ANSWER_SECONDS)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self.close()
            return None
        except asyncio.TimeoutError:
            await self.close()
            raise

    async def _ask(self, request: bytes, then_close: bool) -> tuple[int, bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(request)
        if then_close:
            self._writer.write_eof()
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, told, length = head.partition(b"\r\ncontent-length:")  # there is inference-header-… too
        body = await self._reader.readexactly(int(length.split(b"\r\n")[0] or 0))
        if then_close or b"connection: close" in head or not told:  # a body of chunks is not read
            await self.close()
        return int(head.split(b" ", 2)[1]), body

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None


async def send_http(wire: Wire, sent: Sent, kinds: Sequence[str], vfm: str, text: str, chance: random.Random) -> None:
    """One request of one of ``kinds`` to ``vfm``."""
    kind = chance.choice(kinds)
    request = HTTP_KINDS[kind](chance, vfm, text)
    try:
        answer = await wire.ask(request, then_close=kind in INCOMPLETE)
    except asyncio.TimeoutError:
        end = HANGS
    else:
        end = "closed" if answer is None else f"HTTP {answer[0]}"
    sent.note(f"HTTP, {kind}", request, end)


class RawGrpc:
    """Calls with bytes for messages. A context manager in one event loop."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> RawGrpc:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(self._address, options)
        self._unary = {method: self._channel.unary_unary(method) for method in (INFER, *OTHERS)}
        self._stream = self._channel.stream_stream(STREAM)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, sent: Sent, kinds: Sequence[str], vfm: str, text: str, chance: random.Random) -> None:
        """One request of one of ``kinds`` to ``vfm``, or a stream of `STREAMED`."""
        kind = chance.choice(kinds)
        make = functools.partial(GRPC_KINDS[kind], chance, vfm, text)
        how = chance.choices(("ModelInfer", "stream", "others"), weights=(7, 2, 1))[0]
        if how == "stream":
            messages = [make() for _ in range(STREAMED)]
            end = await self._streamed(messages)
            for message in messages:
                sent.note(f"gRPC stream, {kind}", message, end)
            return
        message = make()
        method = INFER if how == "ModelInfer" else chance.choice(OTHERS)
        end = await _end(self._unary[method](message, timeout=ANSWER_SECONDS))
        sent.note(f"gRPC, {kind}" if method == INFER else "gRPC, other methods", message, end)

    async def _streamed(self, messages: list[bytes]) -> str:
        async def each() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        async def read(call: Any) -> None:
            async for _ in call:
                pass

        return await _end(read(self._stream(each(), timeout=ANSWER_SECONDS)))


async def _end(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code: str = error.code().name
        return HANGS if code == "DEADLINE_EXCEEDED" else code
    return "answered"
