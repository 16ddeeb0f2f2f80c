"""Who may ask a vFM: tokens, of which the host knows only the SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import json

from fmplex_backend.errors import AccessDenied
from fmplex_backend.repository.config import TOKEN_PREFIX

TOKEN = "x-fmplex-token"
"""Request parameter, or header that the server forwards as one, with the caller's token."""


def token_in(parameters: str) -> str | None:
    """The caller's token in a request's parameters, a JSON object; a header's name may come in any case."""
    if TOKEN not in parameters.lower():
        return None
    return next((str(value) for name, value in json.loads(parameters).items() if name.lower() == TOKEN), None)


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
