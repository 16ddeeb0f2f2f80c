"""SIGINT and SIGTERM as an event that is waited for, however many come."""

from __future__ import annotations

import atexit
import queue
import signal
import threading


def told_to_stop() -> threading.Event:
    """Set from the first SIGINT or SIGTERM on. To be called in the main thread.

    A handler must not set it itself: it may run while the main thread, or another handler below it, has the event's
    lock, and would wait for ever. What a `queue.SimpleQueue` is given in one is safe.
    """
    stop, asked = threading.Event(), queue.SimpleQueue[int]()

    def pass_on() -> None:
        asked.get()
        stop.set()

    threading.Thread(target=pass_on, name="told to stop", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.put(number))
    atexit.register(_let_it_end)
    return stop


def _let_it_end() -> None:
    """Python takes its handlers back before its process is gone: a signal after that would end it as a failure."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
