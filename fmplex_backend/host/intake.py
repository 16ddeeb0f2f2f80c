"""From a client's request to rows in the queue: find the vFMs, check the tensors, tokenize, submit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

from fmplex_backend.encoders.base import Encoder
from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Unavailable
from fmplex_backend.host.access import check_token
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.log import Concerned, HostLog
from fmplex_backend.host.registry import Registry
from fmplex_backend.host.requests import Ask, Member, Pending, RowTask
from fmplex_backend.host.routes import Blocked, Serving
from fmplex_backend.repository.sockets import STATUS_OUTPUT, wanted_sockets
from fmplex_backend.scheduling.interface import Rejected, Row

LONGEST_TIMEOUT = 86_400.0
"""Seconds; a timeout beyond it is none. Triton hands on what a client sends, and no thread can wait for 2⁶³ µs."""


class Intake:
    """Takes requests of one physical FM. ``take`` may be called from any thread."""

    def __init__(
        self,
        fm: str,
        encoder: Encoder,
        registry: Registry,
        dispatcher: Dispatcher,
        log: HostLog,
    ) -> None:
        """``log`` is told of requests that cannot be queued."""
        self._log = log
        self._fm, self._encoder, self._registry, self._dispatcher = fm, encoder, registry, dispatcher
        self._meter = dispatcher.meter

    def take(self, ask: Ask) -> None:
        """Queue the rows of ``ask``, all or none. Raises `FMplexError`, then nothing was queued; the log has it."""
        arrived = time.monotonic()
        serving: dict[int, Serving] = {}
        try:
            while not self._try(ask, arrived, serving):
                serving.clear()  # a generation was swapped or removed between routing and queueing: route again
        except FMplexError as error:
            found = [Concerned(ask.request_id, s.generation.vfm, s.generation.version) for s in serving.values()]
            self._log.ended(found or [Concerned(ask.request_id)], error)
            raise

    def _try(self, ask: Ask, arrived: float, serving: dict[int, Serving]) -> bool:
        """See `take` and `_submit`; the vFMs that are asked are put into ``serving``."""
        try:
            wanted = self._wanted(ask.outputs)
            for port in wanted:
                serving[port] = self._serving(port)
            self._admit(ask, serving.values())
        except FMplexError:
            self._meter.unroutable()
            raise
        request = Pending(ask, [], arrived=arrived)
        return self._submit(request, [(port, serving[port], sockets) for port, sockets in wanted.items()])

    def _admit(self, ask: Ask, serving: Iterable[Serving]) -> None:
        """Raise `AccessDenied` where one of the vFMs does not answer to the caller."""
        for one in serving:
            check_token(one.generation.vfm, one.policy.access_tokens, ask.token)

    def _submit(self, request: Pending, parts: Sequence[tuple[int, Serving, frozenset[str]]]) -> bool:
        """Queue the rows of ``request``; False where a generation was retired meanwhile. Raises `FMplexError`."""
        vfms = [serving.generation.vfm for _, serving, _ in parts]
        count = max((len(array) for array in request.ask.inputs.values() if array.ndim), default=0)
        for _, serving, _ in parts:  # before work is done on them; `submit` looks once more
            if (quarantine := serving.generation.quarantine) is not None:
                self._meter.refused(vfms, count, "failed")
                raise quarantine.again()
        try:
            self._dispatcher.check(vfms, count)
            return self._dispatcher.submit(request, [self._rows(request, *part) for part in parts])
        except InvalidInput:
            self._meter.refused(vfms, count, "invalid")
            raise
        except Rejected as no:
            if no.hopeless:
                self._meter.refused(vfms, count, "invalid")
                raise InvalidInput(f"{no}; ask for at most {no.limit} at a time ({no.parameter})") from None
            self._meter.refused(vfms, count, "rejected", no.reason)
            wait = math.ceil(no.wait * 1e3)
            raise Unavailable(f"{no} ({no.parameter}); retry in {wait} ms") from None

    def _wanted(self, outputs: frozenset[str]) -> Mapping[int, frozenset[str]]:
        """Port → sockets that are asked of it. Raises `InvalidInput` where no vFM is meant."""
        wanted = wanted_sockets(outputs)
        if STATUS_OUTPUT in outputs:
            raise InvalidInput(
                f"{self._fm!r} is a physical FM: ask for its output {STATUS_OUTPUT!r} alone, or for a vFM by its own "
                "name"
            )
        if not wanted:
            raise InvalidInput(f"{self._fm!r} is a physical FM: ask for a vFM by its own name")
        return wanted

    def _serving(self, port: int) -> Serving:
        route = self._registry.routes.get(port)
        if route is None:
            raise NotFound(f"port {port} of physical FM {self._fm!r} has no vFM")
        if isinstance(route, Blocked):
            raise route.error.again()
        return route

    def _rows(self, request: Pending, port: int, serving: Serving, sockets: frozenset[str]) -> list[Row]:
        """The rows of one member of the request. Raises `InvalidInput` opened by the vFM's name."""
        generation = serving.generation
        try:
            if missing := sockets - generation.sockets:
                kind = generation.artifact.kind
                raise InvalidInput(f"kind {kind!r} does not fill socket {min(missing)!r}")
            by_token = generation.artifact.kind == "token_classification"
            encoded = self._encoder.encode(generation.artifact.encoder, request.ask.inputs, offsets=by_token)
        except InvalidInput as error:
            raise InvalidInput(f"vFM {generation.vfm!r}: {error}") from None
        member = Member.of(generation, port, sockets, encoded)
        request.members.append(member)
        deadline = _deadline(request.ask.timeout, serving.policy.timeout_ms)
        return [
            RowTask(request, member, position, row).row(generation.vfm, deadline)
            for position, row in enumerate(encoded)
        ]


def _deadline(timeout: float | None, policy_ms: float) -> float | None:
    limits = [limit for limit in (timeout, policy_ms / 1e3) if limit and limit <= LONGEST_TIMEOUT]
    return time.monotonic() + min(limits) if limits else None


def is_status(ask: Ask) -> bool:
    """Whether ``ask`` is for the physical FM's own status and nothing else."""
    return ask.outputs == {STATUS_OUTPUT}
