"""What ``fmplex serve --secure`` asks of tritonserver: an admin key before what changes the server, and TLS.

1. Loading and unloading models, shared memory, tracing and logging need the admin key: header `ADMIN_HEADER` over HTTP,
   ``triton-grpc-protocol-`` and that over gRPC. It is made anew at every start and stands in a file of the user's own;
   it also stands in the server's argument list, so every user of this machine can read it (``ps``).
2. gRPC has TLS. Triton has none for HTTP and metrics, so they listen on the loopback address alone.
3. Which vFM answers to whom are tokens of its own (`fmplex task token`), with and without ``--secure``.
"""

from __future__ import annotations

import os
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from fmplex_backend.errors import InvalidInput

ADMIN_HEADER = "x-fmplex-admin"
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
"""Triton's names of what the admin key is for."""
KEY_BYTES = 32


@dataclass(frozen=True)
class Secure:
    """One start's secrets."""

    certificate: Path
    """PEM: the server's certificate, and those between it and the root."""
    key: Path
    """PEM: its private key."""
    admin_key: str = field(default_factory=lambda: secrets.token_urlsafe(KEY_BYTES), repr=False)

    def check(self) -> None:
        """Raise `InvalidInput` where certificate and key cannot be used together."""
        for what, path in (("certificate", self.certificate), ("private key", self.key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise InvalidInput(f"{what} {str(path)!r}: cannot be read ({error.strerror})") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            mismatch = error.reason == "KEY_VALUES_MISMATCH"
            reason = f" ({error.reason})" if error.reason else ""
            why = "the key is not the certificate's" if mismatch else f"no such pair in PEM format{reason}"
            raise InvalidInput(f"certificate {str(self.certificate)!r} and key {str(self.key)!r}: {why}") from None

    def arguments(self) -> list[str]:
        """Of tritonserver."""
        restricted = f"{','.join(RESTRICTED)}:{ADMIN_HEADER}={self.admin_key}"
        return [
            f"--http-restricted-api={restricted}",
            f"--grpc-restricted-protocol={restricted}",
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
        ]

    def keep(self, path: Path) -> None:
        """Write the admin key where its owner alone can read it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.admin_key + "\n")


def _no_password() -> str:
    raise InvalidInput("the private key is encrypted; tritonserver cannot ask for its password, so decrypt it")
