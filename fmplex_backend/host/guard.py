"""Ends the host when tritonserver has died: ``python guard.py SERVER HOST``, pidfds of both.

A thread of the host could not do it: Triton's stub holds the interpreter's lock while it waits for a metric to be
taken, for ever where tritonserver was killed. The engines end with their host, and the next start clears its folder.
"""

import os
import select
import signal
import subprocess
import sys


class Guard:
    """The process that watches. It needs nothing but Python itself: 15 ms to start, 6 MB, no work while it waits."""

    def __init__(self, server: int, host: int) -> None:
        fds = [os.pidfd_open(server), os.pidfd_open(host)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the whole group is for those that drain
            )
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """End it before what it watches ends."""
        self._process.kill()
        self._process.wait()


def _watch(server: int, host: int) -> None:
    poll = select.poll()
    poll.register(server, select.POLLIN)
    poll.register(host, select.POLLIN)
    if server in dict(poll.poll()):
        signal.pidfd_send_signal(host, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), int(sys.argv[2]))
