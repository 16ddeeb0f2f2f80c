"""One running tritonserver: start it, wait until it is ready, stop it so that no process is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_backend.host.access import TOKEN
from fmplex_backend.host.engine_environment import WARM
from fmplex_backend.host.log import LOG_FORMAT
from fmplex_tools.process_tree import kill, tree
from fmplex_tools.server.install import TritonInstall, find_triton
from fmplex_tools.server.log_lines import is_information
from fmplex_tools.server.lost_hosts import LostHosts
from fmplex_tools.server.secure import Secure

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
LOOPBACK = "127.0.0.1"
_SHARED_MEMORY = Path("/dev/shm")
_STUB = "triton_python_backend_stub"[:15]
"""What the kernel keeps of its name, at least."""
STACK_BYTES = 64 << 20
"""Of tritonserver's threads: they keep HTTP requests' bodies on their stacks; with 8 MiB a body of 4 MiB ends it."""
ARENAS = "2"
"""Of glibc's memory: with one for each of tritonserver's threads, what is freed in one is of no use to the others, and
it grows for hundreds of thousands of requests (docs/results.md)."""


@dataclass(frozen=True)
class ServerOptions:
    """How to start the server."""

    repository: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = "127.0.0.1"
    mode: Literal["poll", "explicit"] = "poll"
    log_level: Literal["error", "warning", "info", "verbose"] = "info"
    drain_seconds: int = 10
    """How long a stopping server waits for requests in flight."""
    secure: Secure | None = None
    log_format: Literal["text", "json"] = "text"
    """Of the hosts' lines; Triton's own have one of theirs."""
    warm: Path | None = None
    """Where Python that is warm listens (see `fmplex_tools.server.warm`)."""

    @property
    def plain_host(self) -> str:
        """Address of the endpoints that have no TLS."""
        return self.host if self.secure is None else LOOPBACK

    @property
    def http(self) -> str:
        """``host:port`` of the HTTP endpoint."""
        return f"{self.plain_host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return f"{self.host}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """``host:port`` of the Prometheus endpoint."""
        return f"{self.plain_host}:{self.metrics_port}"

    def environment(self) -> dict[str, str]:
        """What hosts read, and how tritonserver keeps memory, unless this process was told otherwise."""
        made = {LOG_FORMAT: self.log_format, "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", ARENAS)}
        return made | ({WARM: str(self.warm)} if self.warm else {})

    def arguments(self) -> list[str]:
        """tritonserver's command line, without the binary and the backend directory."""
        control = (
            ["--model-control-mode=poll", "--repository-poll-secs=1"]
            if self.mode == "poll"
            else ["--model-control-mode=explicit", "--load-model=*"]
        )
        level = ("error", "warning", "info", "verbose").index(self.log_level)
        return [
            f"--model-repository={self.repository}",
            *control,
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            *(f"--{name}-address={self.plain_host}" for name in ("http", "metrics")),
            f"--grpc-address={self.host}",
            *(f"--{name}-header-forward-pattern=(?i){TOKEN}" for name in ("http", "grpc")),
            *(self.secure.arguments() if self.secure else ()),
            # One broken model must not keep the others from being served.
            "--exit-on-error=false",
            "--strict-readiness=false",
            f"--exit-timeout-secs={self.drain_seconds}",
            "--log-error=true",
            f"--log-warning={str(level >= 1).lower()}",
            "--log-info=true",  # it says what is loaded; who asks for less is not shown it
            f"--log-verbose={int(level >= 3)}",
        ]


class TritonServer:
    """See the module. A context manager: ``with TritonServer(options) as server: …``."""

    def __init__(
        self,
        options: ServerOptions,
        *,
        on_line: Callable[[str], None] | None = None,
        install: TritonInstall | None = None,
    ) -> None:
        """``on_line`` sees every line that the server prints, from a thread of its own."""
        self.options = options
        self.install = install or find_triton()
        self._on_line = on_line
        self._folder = Path(tempfile.mkdtemp(prefix="fmplex-triton-"))
        self._tail: deque[str] = deque(maxlen=40)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._hosts = LostHosts()
        self._segments: set[Path] = set()
        """Shared memory of its stubs, which nobody removes who was killed."""

    @property
    def pid(self) -> int:
        """tritonserver's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self._tail)

    def start(self) -> None:
        """Start the process. Raises `InvalidInput` where a port is taken."""
        options = self.options
        for host, port in (
            (options.plain_host, options.http_port),
            (options.host, options.grpc_port),
            (options.plain_host, options.metrics_port),
        ):
            check_port_free(host, port)
        backends = self.install.lay_out(self._folder)
        self._process = subprocess.Popen(
            [str(self.install.binary), f"--backend-directory={backends}", *self.options.arguments()],
            env=self.install.environment() | options.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to handle
            preexec_fn=_before_tritonserver,
        )
        self._reader = threading.Thread(target=self._read, name="tritonserver output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        quiet = self.options.log_level in ("error", "warning")
        for line in map(str.rstrip, self._process.stdout):
            if self._hosts.hear(line) or (quiet and is_information(line)):
                continue
            self._tail.append(line)
            if self._on_line is not None:
                self._on_line(line)

    @property
    def crashed(self) -> bool:
        """Whether a signal has ended it."""
        return self.exit_code is not None and self.exit_code < 0

    @property
    def lost(self) -> str | None:
        """What is wrong where Triton waits for ever for a host that it has lost, see `lost_hosts`."""
        fm = self._hosts.first()
        return None if fm is None else f"tritonserver has lost the host of physical FM {fm!r} while it loaded it"

    def check(self) -> None:
        """Raise `EngineFailure` with the server's last words where it has ended, or waits for ever."""
        if self.exit_code is not None:
            raise EngineFailure(f"tritonserver ended with code {self.exit_code}:\n{self.tail}")
        if self.lost is not None:
            raise EngineFailure(self.lost)

    def wait_ready(self, timeout: float, stop: threading.Event | None = None) -> None:
        """Wait until HTTP says ready, or ``stop`` is set.

        Raises `EngineFailure` with the server's last words when it ends or is late.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if stop is not None and stop.is_set():
                return
            self.check()
            if answers(f"http://{self.options.http}/v2/health/ready"):
                return
            time.sleep(0.05)
        raise EngineFailure(f"tritonserver is not ready after {timeout:.0f} s:\n{self.tail}")

    def stop(self) -> None:
        """SIGTERM, wait for requests in flight, then make sure that no process of the tree is left."""
        if self._process is not None and self._process.poll() is None:
            processes = self._tree()
            self.note_segments()
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.options.drain_seconds + 10)
            self._kill(processes)
        self.kill()

    def note_segments(self) -> None:
        """Look which shared memory its stubs have: when somebody has killed tritonserver, nobody can tell any more."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name().startswith(_STUB):
                    self._segments |= {
                        path for word in process.cmdline() if (path := _SHARED_MEMORY / Path(word).name).is_file()
                    }

    def kill(self) -> None:
        """End it at once, with every process of its tree and the shared memory of its stubs."""
        self.note_segments()
        if self._process is not None:
            self._kill(self._tree())
        for segment in self._segments:
            segment.unlink(missing_ok=True)
        self._segments.clear()
        if self._reader is not None:
            self._reader.join(timeout=5)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self, processes: list[psutil.Process]) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            kill(processes)

    def _tree(self) -> list[psutil.Process]:
        if self._process is None or self.exit_code is not None:  # its number may be another process's by now
            return []
        return tree(self.pid)

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether ``url`` is answered with 200 within ``timeout`` seconds."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _before_tritonserver() -> None:
    """In its process: it dies with this one, and its threads have room."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    room = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft == resource.RLIM_INFINITY or soft < room:  # threads of a process without a limit have 2 MiB
        resource.setrlimit(resource.RLIMIT_STACK, (room, hard))


def check_port_free(host: str, port: int) -> None:
    """Raise `InvalidInput` where something listens on ``host:port`` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(f"port {port} on {host} cannot be used ({error.strerror}); choose another") from None


def free_ports(count: int) -> list[int]:
    """``count`` distinct ports that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
