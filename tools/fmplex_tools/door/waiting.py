"""Requests for vFMs that are on no server at the moment: held until there is one, then sent on their way again.

The door routes them here. The answer is a redirect to where they came from, which Envoy follows by itself, by the
routes of then; a client notices nothing but the time. So an FM that sleeps is woken by whoever asks for it, without
an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from aiohttp import web

HEADER = "x-fmplex-vfm"
"""Which vFM a request is for, as the door tells it."""
MOST = 1024
"""Requests that are held; those beyond are told to come later."""
SETTLE = 0.25
"""Seconds for Envoy to read its new routes."""
_STREAM = "/ModelStreamInfer"


class Waiting:
    """A server of its own on the loopback address. Other threads may call `serve`, `names` and `close`."""

    def __init__(self, port: int, longest: float) -> None:
        """``longest``: seconds that a request waits at most. Raises `OSError` where the port is taken."""
        self._longest = longest
        self._served: dict[str, float] = {}
        """vFM → since when the door leads it to servers."""
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._runner = self._loop.run_until_complete(self._listen(port))
        self._thread = threading.Thread(target=self._loop.run_forever, name="waiting", daemon=True)
        self._thread.start()

    def serve(self, on: Mapping[str, Collection[str]]) -> None:
        """The door leads there now: vFM → servers."""
        with self._lock:
            now = time.monotonic()
            self._served = {vfm: self._served.get(vfm, now) for vfm, servers in on.items() if servers}

    def names(self) -> tuple[str, ...]:
        """vFMs that are waited for."""
        with self._lock:
            return tuple(sorted(self._held))

    def close(self) -> None:
        """Drop what is held."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _listen(self, port: int) -> web.ServerRunner:
        # Who gives up does not wait any more.
        runner = web.ServerRunner(web.Server(self._answer, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        return runner

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        vfm = request.headers.get(HEADER, "")
        if request.path.endswith(_STREAM):  # what is not whole yet cannot be sent on its way again
            with self._holding(vfm):
                await asyncio.sleep(1.0)  # long enough for being seen
            return _later(request, f"vFM {vfm!r} is being brought up; retry in 5 s")
        async for _ in request.content.iter_any():
            pass
        if self._held.total() >= MOST:
            return _later(request, f"{MOST} requests wait at the door already; retry in 5 s")
        end = time.monotonic() + self._longest
        with self._holding(vfm):
            while not self._is_served(vfm):
                if time.monotonic() > end:
                    return _later(request, f"vFM {vfm!r} is on no server, after {self._longest:g} s; retry in 10 s")
                await asyncio.sleep(0.05)
        where = f"{request.headers.get('x-forwarded-proto', 'http')}://{request.host}{request.raw_path}"
        return web.Response(status=307, headers={"Location": where})

    def _is_served(self, vfm: str) -> bool:
        with self._lock:
            since = self._served.get(vfm)
        return since is not None and time.monotonic() - since > SETTLE

    @contextlib.contextmanager
    def _holding(self, vfm: str) -> Iterator[None]:
        with self._lock:
            self._held[vfm] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[vfm] -= 1
                self._held = +self._held


def _later(request: web.BaseRequest, why: str) -> web.Response:
    """As Triton words its errors, over HTTP or gRPC."""
    if request.headers.get("content-type", "").startswith("application/grpc"):
        told = {"content-type": "application/grpc", "grpc-status": "14", "grpc-message": why.replace("'", "%27")}
        return web.Response(status=200, headers=told)
    return web.json_response({"error": why}, status=503, headers={"Retry-After": "5"})
