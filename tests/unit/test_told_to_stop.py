"""Signals that come in heaps end a process as one does."""

from __future__ import annotations

import signal
import subprocess
import sys

WAITS = """
from fmplex_tools.server.told_to_stop import told_to_stop
stop = told_to_stop()
print("ready", flush=True)
while not stop.wait(0.0001):  # in and out of the event's lock all the time
    pass
print("stops", flush=True)
"""


def test_signals_in_heaps_end_it() -> None:
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGINT) * 100:
            process.send_signal(number)
        try:
            told, _ = process.communicate(timeout=30)
        finally:
            process.kill()
        assert (told, process.returncode) == ("stops\n", 0)
