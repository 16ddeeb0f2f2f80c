"""What an engine's process does from its start to its end, however it was started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fmplex_backend.messages import EngineFailed, EngineReady
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel

if TYPE_CHECKING:
    from fmplex_backend.backbones.base import Backbone

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when the thread that started it ends: no engine outlives its host.

    ``parent`` is its process id, where this process may have lost it already.
    """
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the host died before the engine was up")


def load_backbone(settings: FMSettings, device: str) -> Backbone:
    """The backbone on ``device``. Raises `FMplexError`, or what torch and transformers raise."""
    # Imported here: torch takes seconds, and a bad start must be told to the host, not to stderr.
    from transformers.utils import logging as transformers_logging

    from fmplex_backend.backbones import registry

    transformers_logging.disable_progress_bar()  # the server's log is no terminal
    return registry.load_backbone(settings.backbone, settings.dtype, device)


def pack(backbone: Backbone, settings: FMSettings) -> None:
    """Pack its linear layers, with the threads that compute, where they are to be; the log is told where not."""
    from fmplex_backend.backbones.packed_linear import is_packed, pack_linears

    if settings.dtype != "fp32" or not settings.packed_weights or is_packed(backbone.model):
        return
    if why := pack_linears(backbone.model):
        print(f"fmplex: the backbone runs without packed weights: {why}", flush=True)


def compute_threads(settings: FMSettings) -> int:
    """Of each CPU engine on this machine."""
    return settings.compute_threads(len(os.sched_getaffinity(0)))


def serve(
    channel: Channel, device: str, settings: FMSettings, backbone: Callable[[], Backbone], started: float
) -> None:
    """Take the ``backbone`` and answer messages until the channel closes; what cannot start is told to the host."""
    try:
        import torch

        from fmplex_backend.engine import faults
        from fmplex_backend.engine.measuring import device_facts
        from fmplex_backend.engine.serving import answer_all
        from fmplex_backend.engine.worker import Worker

        if device == "cpu":
            torch.set_num_threads(compute_threads(settings))
        model = backbone()
        if device == "cpu":
            pack(model, settings)
        memory = settings.adapter_memory_mb << 20
        worker = Worker(model, device, settings.adapter_slots, memory=memory, graphs=settings.cuda_graphs)
        faults.install(worker)
    except Exception as error:
        channel.send(EngineFailed(str(error) or type(error).__name__))
        return
    channel.send(EngineReady(worker.backbone.facts, device_facts(device), os.getpid(), time.time() - started))
    answer_all(channel, worker, device)
