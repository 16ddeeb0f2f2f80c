"""A port that tells load balancers whether the server serves, by the supervisor's looks: real inferences."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fmplex_backend.errors import InvalidInput

PATH = "/v2/health/ready"


class HealthPort:
    """Answers ``GET /v2/health/ready`` with 200, or 503 and why. A context manager."""

    def __init__(self, host: str, port: int, reason: Callable[[], str | None]) -> None:
        """``reason``: why the server does not serve; None where it does. Raises `InvalidInput` where it is taken."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != PATH:
                    self._answer(404, f"ask {PATH}")
                elif (why := reason()) is not None:
                    self._answer(503, why)
                else:
                    self._answer(200, None)

            def _answer(self, status: int, why: str | None) -> None:
                body = b"" if why is None else json.dumps({"error": why}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: it is asked every second."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise InvalidInput(f"port {port} on {host} cannot be used ({error.strerror}); choose another") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health port", daemon=True)

    def __enter__(self) -> HealthPort:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
