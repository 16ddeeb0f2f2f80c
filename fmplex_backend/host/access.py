"""Who may ask a vFM: tokens, of which the host knows only the SHA-256, and the audit of those that were turned away."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable

from fmplex_backend.errors import AccessDenied
from fmplex_backend.repository.config import TOKEN_PREFIX

TOKEN = "x-fmplex-token"
"""Request parameter, or header that the server forwards as one, with the caller's token."""
AUDIT_SECONDS = 10.0
"""A vFM that is asked in vain over and over has a line so often."""


def token_hash(token: str) -> str:
    """As `Policy.access_tokens` has it."""
    return TOKEN_PREFIX + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def check_token(vfm: str, allowed: str, token: str | None) -> None:
    """Raise `AccessDenied` unless ``allowed`` (`Policy.access_tokens`) is empty or has the hash of ``token``.

    Takes as long whichever of the hashes it is, and whichever letter is wrong.
    """
    if not allowed:
        return
    given = token_hash(token or "")
    good = False
    for known in allowed.split(","):
        good |= hmac.compare_digest(known, given)
    if not good:
        what = "its token is not one of them" if token else "the request has none"
        raise AccessDenied(f"vFM {vfm!r} answers only to its tokens, and {what} (parameter or header {TOKEN!r})")


class Audit:
    """Tells the log of requests that were denied: the first at once, then how many, every `AUDIT_SECONDS`."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}
        """vFM → when the log was told last, and how many were denied in silence since."""

    def denied(self, vfm: str, reason: str, request_id: str, now: float) -> None:
        """A request for ``vfm`` was denied at ``now``, in seconds of any one clock."""
        with self._lock:
            last, silent = self._told.get(vfm, (-AUDIT_SECONDS, 0))
            if now < last + AUDIT_SECONDS:
                self._told[vfm] = (last, silent + 1)
                return
            self._told[vfm] = (now, 0)
        others = f"; {silent} more since the last such line" if silent else ""
        self._log(f"denied: request {request_id!r}: {reason}{others}")
