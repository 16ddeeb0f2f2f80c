"""The engine's process: ``python -m fmplex_backend.engine FD DEVICE SETTINGS``, started by the host.

FD is a socket to the host, SETTINGS the physical FM's settings as JSON. Ends when the host closes the socket, dies, or
interrupts it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from fmplex_backend.messages import EngineFailed, EngineReady
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.transport import Channel

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends: no engine outlives its host."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the host died before the engine was up")


def serve(channel: Channel, device: str, settings: FMSettings, started: float) -> None:
    """Load the backbone, then answer messages until the channel closes."""
    try:
        worker = _make_worker(device, settings)
        from fmplex_backend.engine.measuring import device_facts
        from fmplex_backend.engine.serving import answer_all
    except Exception as error:
        channel.send(EngineFailed(str(error) or type(error).__name__))
        return
    channel.send(EngineReady(worker.backbone.facts, device_facts(device), os.getpid(), time.time() - started))
    answer_all(channel, worker, device)


def _make_worker(device: str, settings: FMSettings):  # type: ignore[no-untyped-def]
    # Imported here: torch takes seconds, and a bad start must be told to the host, not to stderr.
    import torch
    from transformers.utils import logging as transformers_logging

    from fmplex_backend.backbones.text import TextBackbone
    from fmplex_backend.engine.worker import Worker

    transformers_logging.disable_progress_bar()  # the server's log is no terminal
    if device == "cpu":
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    backbone = TextBackbone(settings.backbone, settings.dtype, device)
    memory = settings.adapter_memory_mb << 20
    return Worker(backbone, device, settings.adapter_slots, memory=memory, graphs=settings.cuda_graphs)


def main() -> None:
    """Entry point."""
    started = time.time()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the host ends us in order
    fd, device, settings = sys.argv[1:]
    with Channel.adopt(int(fd)) as connection:
        serve(connection, device, FMSettings.model_validate_json(settings), started)


if __name__ == "__main__":
    main()
