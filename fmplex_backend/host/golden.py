"""Golden rows: what a loaded generation is asked before it may answer clients.

They take the path of every other row: tokenizer, queue, a batch with whoever waits, adapter, head. So exactly what will
serve is checked, and serving goes on meanwhile. They wait under a name of their own: no rate limit and no full queue of
the vFM keeps them out, none of its tokens are used up, and they are not counted as its traffic.

1. `add` takes a generation that is loaded, `run` begins every check that has not begun, so that the rows of many vFMs
   ride in the same batches, and gives the verdicts of those that have ended.
2. Another answer than the golden one: the version is refused. No answer in time, or a shutdown: not its fault.
3. An engine that fails at a row may have failed at somebody else's in the same batch. So the check is made once more,
   while no other is under way; if that fails too, the version is refused.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from dataclasses import dataclass

from fmplex_backend.encoders.base import Encoder
from fmplex_backend.errors import EngineFailure, FMplexError, InvalidInput, Quarantined, Refused, Unavailable
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.requests import Ask, Member, Pending, Reply, RowTask
from fmplex_backend.repository.golden import GOLDEN_FILE, Golden, compare, golden_socket
from fmplex_backend.repository.sockets import output_name
from fmplex_backend.scheduling.interface import VfmPolicy

QUEUE_SECONDS = 60.0
"""A golden row that has not started by then is not run."""
ANSWER_SECONDS = 240.0
"""Longer than that no answer takes: an engine that hangs is ended sooner."""


@dataclass(frozen=True)
class Verdict:
    """How a check ended: ``error`` is None, `Refused`, or what is not the version's fault."""

    generation: Generation
    checked: bool
    """False for a version without golden rows."""
    error: FMplexError | None = None


@dataclass(eq=False)
class _Check:
    generation: Generation
    golden: Golden | None
    reply: Future[Reply] | None = None
    """None before it has begun."""
    begun: float = 0.0
    failures: int = 0


class GoldenChecks:
    """See the module. Called from one thread."""

    def __init__(self, encoder: Encoder, dispatcher: Dispatcher, dtype: str) -> None:
        """``dtype`` is what the physical FM computes in."""
        self._encoder, self._dispatcher, self._dtype = encoder, dispatcher, dtype
        self._checks: dict[str, _Check] = {}

    def __len__(self) -> int:
        return len(self._checks)

    def add(self, generation: Generation, golden: Golden | None) -> None:
        """Take a loaded generation; one of the same vFM must have been forgotten before."""
        self._checks[generation.vfm] = _Check(generation, golden)

    def forget(self, vfm: str) -> Generation | None:
        """Give up the check of ``vfm``; the generation, if there was one. Rows under way are answered to nobody."""
        check = self._checks.pop(vfm, None)
        return check.generation if check else None

    def run(self, *, to_the_end: bool) -> list[Verdict]:
        """Begin what has not begun; the verdicts of those that have ended, or of all where ``to_the_end`` waits."""
        verdicts: list[Verdict] = []
        while self._checks:
            self._begin()
            if to_the_end:
                wait([check.reply for check in self._under_way() if check.reply is not None], ANSWER_SECONDS)
            for check in self._under_way():
                if (verdict := self._verdict(check)) is not None:
                    del self._checks[check.generation.vfm]
                    verdicts.append(verdict)
            if not to_the_end:
                break
        return verdicts

    def _under_way(self) -> list[_Check]:
        return [check for check in self._checks.values() if check.reply is not None]

    def _begin(self) -> None:
        """Rule 3: what failed once waits until it is alone."""
        waiting = [check for check in self._checks.values() if check.reply is None]
        fresh = [check for check in waiting if not check.failures]
        for check in fresh or ([] if self._under_way() else waiting[:1]):
            check.reply, check.begun = Future(), time.monotonic()
            try:
                if check.golden is None:
                    check.reply.set_result({})
                else:
                    self._submit(check.generation, check.golden, check.reply)
            except FMplexError as error:
                check.reply.set_result(error)

    def _submit(self, generation: Generation, golden: Golden, reply: Future[Reply]) -> None:
        """Queue the golden rows; the answers, or an error, go to ``reply``. Raises `FMplexError`."""
        name = f"{generation.vfm}/golden/{generation.number}"  # no folder's name has a slash: it is nobody else's
        socket = golden_socket(generation.artifact)
        try:
            encoded = [
                row
                for asked in golden.inputs
                for row in self._encoder.encode(generation.artifact.encoder, asked.tensors)
            ]
        except InvalidInput as error:
            raise Refused(f"{GOLDEN_FILE}: {error}") from None
        ask = Ask(frozenset({output_name(0, socket)}), {}, reply.set_result, request_id="golden rows")
        member = Member.of(generation, 0, frozenset({socket}), encoded)
        request = Pending(ask, [member])
        deadline = time.monotonic() + QUEUE_SECONDS
        rows = [RowTask(request, member, place, row).row(name, deadline) for place, row in enumerate(encoded)]
        self._dispatcher.set_policy(name, VfmPolicy(max_queue_size=len(rows)), new=True)
        try:
            self._dispatcher.submit(request, [rows])
        finally:
            self._dispatcher.remove_vfm(name)  # those that wait keep their places

    def _verdict(self, check: _Check) -> Verdict | None:
        """None where there is none yet."""
        assert check.reply is not None
        generation, golden = check.generation, check.golden
        if not check.reply.done():
            if time.monotonic() < check.begun + ANSWER_SECONDS:
                return None
            return Verdict(generation, True, Unavailable(f"its golden rows have no answer after {ANSWER_SECONDS:g} s"))
        reply = check.reply.result()
        if golden is None:
            return Verdict(generation, False)
        if isinstance(reply, EngineFailure):
            check.failures += 1
            if check.failures == 1:
                check.reply = None
                return None
            return Verdict(generation, True, Refused(f"its golden rows fail: {reply}"))
        if isinstance(reply, Quarantined):
            return Verdict(generation, True, Refused("its golden rows kill engines, one after the other"))
        if isinstance(reply, FMplexError):
            return Verdict(generation, True, reply)
        try:
            (answers,) = reply.values()
            compare(golden, list(answers), self._dtype)
        except Refused as error:
            return Verdict(generation, True, error)
        return Verdict(generation, True)
