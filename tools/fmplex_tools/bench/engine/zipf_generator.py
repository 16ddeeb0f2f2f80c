"""The process that sends to a fleet: ``python -m fmplex_tools.bench.engine.zipf_generator``, driven by `ZipfLoad`.

It keeps to the protocol of `fmplex_tools.bench.fair.generator`, and sends as that does; but which vFM a request goes to
is drawn by popularity.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from typing import Any

from fmplex_tools.bench.fair.generator import PAUSE, Generator
from fmplex_tools.bench.fair.streams import OK, Stream


class ZipfGenerator(Generator):
    """``shares[i]`` of all requests go to ``streams[i]``."""

    def __init__(
        self, url: str, streams: list[Stream], seed: int, *, shares: list[float], rate: float, clients: int
    ) -> None:
        super().__init__(url, streams, seed)
        self._chance = random.Random(seed)
        self._bounds = list(itertools.accumulate(shares))
        self._rate, self._clients = rate, clients
        self._numbers = itertools.count()

    def _loops(self, index: int) -> list[Any]:
        if index > 0:
            return []  # all loops draw among all streams
        if self._clients:
            return [self._closed_loop() for _ in range(self._clients)]
        return [self._open_loop()]

    def _draw(self) -> int:
        return self._chance.choices(range(len(self._bounds)), cum_weights=self._bounds)[0]

    async def _closed_loop(self) -> None:
        while not self._stopping.is_set():
            if await self._send(self._draw(), next(self._numbers), time.monotonic()) != OK:
                await asyncio.sleep(PAUSE)

    async def _open_loop(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            due += self._chance.expovariate(self._rate)
            if (wait := due - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._stopping.wait(), wait)
                    return
                except asyncio.TimeoutError:
                    pass
            else:
                await asyncio.sleep(0)  # late: what was sent must get on its way
            task = asyncio.create_task(self._send(self._draw(), next(self._numbers), due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)


async def _main() -> bytes:
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    order = json.loads(await commands.readline())
    streams = [Stream(name, tuple(order["tokens"]), order["rows"]) for name in order["names"]]
    options = {key: order[key] for key in ("shares", "rate", "clients")}
    return await ZipfGenerator(order["url"], streams, order["seed"], **options).run(commands)


if __name__ == "__main__":
    sys.stdout.buffer.write(asyncio.run(_main()))
