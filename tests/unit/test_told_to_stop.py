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


ENDS = """
import os, signal
from fmplex_tools.server.told_to_stop import told_to_stop

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

last = Last()  # its end comes when Python has taken its handlers back
told_to_stop()
"""


def test_a_signal_at_the_very_end_does_not_make_it_a_failure() -> None:
    assert subprocess.run([sys.executable, "-c", ENDS], check=False).returncode == 0
