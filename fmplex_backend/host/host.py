"""The FM host: one physical FM's queue, engines, repository watch and replies, without torch and without Triton."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.backbones.source import cache_dir
from fmplex_backend.calibration.fit import Fit
from fmplex_backend.calibration.kept import Key, obtain
from fmplex_backend.encoders.choice import make_encoder
from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_backend.host.counts import outcome_of
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.engine_process import EngineProcess
from fmplex_backend.host.forks import ForkServer
from fmplex_backend.host.intake import Intake, is_status
from fmplex_backend.host.log import Concerned, HostLog
from fmplex_backend.host.metrics import Snapshot
from fmplex_backend.host.registry import Registry
from fmplex_backend.host.requests import Ask, Pending
from fmplex_backend.owned_folder import OwnedFolder
from fmplex_backend.repository.config import FMSettings, fm_settings
from fmplex_backend.repository.sockets import STATUS_OUTPUT
from fmplex_backend.scheduling.cost import UNKNOWN
from fmplex_backend.scheduling.policies import make_queue

SCAN_SECONDS = 0.25
REST_SECONDS = 0.1
"""Until the next look at a version whose files have just changed: unchanged since, it is taken for whole."""
SENDERS = 2
"""Threads that reply. Sending blocks for a round trip to tritonserver; two carry 5,000 replies/s, four no more."""


class FMHost:
    """See the module. Start it, give it requests by `ask`, stop it."""

    def __init__(self, repository: Path, fm: str, log: HostLog, *, settings: FMSettings | None = None) -> None:
        """``settings`` are read from the physical FM's ``config.pbtxt`` unless given. Raises `Refused`."""
        self.fm = fm
        self._repository = repository
        self._log = log
        self.settings = settings or fm_settings(repository / fm)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one request must not take every core from the engine
        # In the cache and not in /tmp, where a cleaner may take what an engine needs days later.
        self._work_dir = OwnedFolder(cache_dir() / "run", fm)
        self._fork_server = ForkServer(self.settings, log)
        devices = self.settings.engines.split(",")
        engines = [EngineProcess(device, self.settings, self._fork_server) for device in devices]
        self._replies: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        scheduler = make_queue(self.settings.policy, self.settings.max_batch_rows, UNKNOWN)
        scheduler.max_waiting_rows = self.settings.max_waiting_rows
        slots, ahead = self.settings.adapter_slots, self.settings.ahead
        scheduler.change_slots(slots)
        self._dispatcher = Dispatcher(
            scheduler,
            engines,
            self._finished,
            log,
            slots=slots,
            ahead=ahead,
            hang_seconds=self.settings.hang_seconds,
        )
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._started = time.time()

    def start(self) -> None:
        """Start the engines, load every vFM of the repository, then follow it. Raises `FMplexError`."""
        try:
            self.facts = self._dispatcher.start()
        except FMplexError as error:
            self._fork_server.close()
            self._work_dir.close()
            raise EngineFailure(f"physical FM {self.fm!r}: {error}") from None
        self._dispatcher.use_fit(self._fit())
        encoder, dispatcher = make_encoder(self.facts), self._dispatcher
        self.registry = Registry(
            self._repository, self.fm, self.settings, self.facts, encoder, dispatcher, self._work_dir.path, self._log
        )
        self._intake = Intake(self.fm, encoder, self.registry, dispatcher, self._log)
        for _ in range(SENDERS):  # before the first scan, whose golden rows they answer
            self._start_thread(self._send)
        try:
            self.registry.scan(settled=True)
        except BaseException:
            self.stop()
            raise
        self._start_thread(self._watch)

    def _start_thread(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, name=target.__name__))
        self._threads[-1].start()

    def _fit(self) -> Fit:
        """What batches cost on this device: kept from before, or measured now, before there is any vFM."""
        rows = self.settings.max_batch_rows
        key = Key.of(self.facts.fingerprint, self._dispatcher.device, self.settings.dtype, rows)
        try:
            return obtain(
                cache_dir() / "costs", key, lambda seconds: self._dispatcher.measure(rows, seconds), self._log
            )
        except FMplexError as error:
            self._log(f"what batches cost cannot be measured, starting from a guess: {error}")
            return Fit(UNKNOWN, 0.0, ())

    def stop(self) -> None:
        """Answer what waits, end the engines, join every thread, leave no file."""
        self._stop.set()
        self._dispatcher.stop()
        self._fork_server.close()
        for _ in range(SENDERS):
            self._replies.put(None)
        for thread in self._threads:
            thread.join()
        self._work_dir.close()

    def ask(self, ask: Ask) -> FMplexError | None:
        """Take a request; None: its one reply goes to ``ask.respond``, from another thread. Never raises.

        A request that is refused here has the returned error for its reply instead. It is the edge's to send, which
        has a quicker way than a reply of its own: in a flood, nearly all requests end here.
        """
        try:
            if is_status(ask):
                status = json.dumps(self.status()).encode()
                rows = len(next(iter(ask.inputs.values()), [b""]))
                self._replies.put(partial(ask.respond, {STATUS_OUTPUT: np.array([[status]] * rows, dtype=object)}))
            else:
                self._intake.take(ask)
        except FMplexError as error:
            return error
        except Exception as error:  # a defect of ours: the client must not wait for ever
            return self._defect(error, ask)
        return None

    def _defect(self, error: Exception, ask: Ask) -> EngineFailure:
        """What ``ask`` is answered with where our own code has failed."""
        what = f"{type(error).__name__}: {error}"
        self._log.sparingly("defect", what, [Concerned(ask.request_id)], what, time.monotonic())
        return EngineFailure(f"internal error: {what}")

    def refused(self, error: FMplexError) -> FMplexError:
        """``error``, counted: of a request that cannot even be read."""
        self._dispatcher.meter.unroutable()
        return error

    def status(self) -> dict[str, Any]:
        """What is served, and what was refused and why; plain data."""
        return {
            "fm": self.fm,
            "backbone": self.facts.spec,
            "fingerprint": self.facts.fingerprint,
            "modality": self.facts.modality,
            "settings": self.settings.model_dump(),
            "cost_model": {
                "device": self._dispatcher.device.name,
                "fit": str(self._dispatcher.fit),
                "seconds": None if self._dispatcher.fit is None else asdict(self._dispatcher.fit.cost),
                "error": None if self._dispatcher.fit is None else round(self._dispatcher.fit.error, 4),
            },
            "host_pid": os.getpid(),
            "engine_pids": self._dispatcher.engine_pids,
            "fork_server_pid": self._fork_server.pid,
            "uptime_s": round(time.time() - self._started, 1),
            "vfms": self.registry.status(),
        }

    def metrics(self) -> Snapshot:
        """What was counted until now."""
        return self._dispatcher.metrics()

    def _finished(self, request: Pending) -> None:
        self._replies.put(lambda: self._deliver(request))

    def _deliver(self, request: Pending) -> None:
        try:
            reply = request.reply()
        except Exception as error:
            reply = self._defect(error, request.ask)
        try:
            request.ask.respond(reply)
        finally:
            outcome = outcome_of(reply if isinstance(reply, FMplexError) else None)
            if request.error is not None and request.failed is not None:
                self._log.ended([request.failed.concerned], request.error)
            vfms = dict.fromkeys(row.vfm for row in request.rows)  # golden rows are under no vFM's name
            self._dispatcher.meter.answered(vfms, outcome, time.monotonic() - request.arrived)

    def _send(self) -> None:
        while (reply := self._replies.get()) is not None:
            try:
                reply()
            except Exception as error:  # one client's reply must not end the thread that serves all
                self._log(f"cannot send a reply: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        at_rest = True
        while not self._stop.wait(SCAN_SECONDS if at_rest else REST_SECONDS):
            try:
                at_rest = self.registry.scan()
            except Exception as error:  # e.g. the repository is not mounted for a moment: keep what is served
                self._log(f"cannot read the repository: {type(error).__name__}: {error}")
