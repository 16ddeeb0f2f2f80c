"""What can go wrong, from the caller's side.

    FMplexClientError
    ├── InvalidRequest      this request can never be answered; do not send it again    HTTP 400, INVALID_ARGUMENT
    ├── UnknownTask         no such task, or it is broken and the server says why       HTTP 404, NOT_FOUND
    ├── ServerUnavailable   try again later: down, loading, queue full (was retried)    HTTP 503, UNAVAILABLE, no host
    ├── DeadlineExceeded    the answer did not come within the caller's timeout         CANCELLED, DEADLINE_EXCEEDED
    └── ServerError         the server failed, or answered something that is no answer  HTTP 500, INTERNAL

The server's own words are the message; ``status`` keeps its code as it came.
"""

from __future__ import annotations

import re


class FMplexClientError(Exception):
    """Base of all of them.

    ``message`` is the server's text (or the client's own, where no server was involved); ``status`` the HTTP status or
    gRPC code as text, None where there was none; ``request_id`` names the request in the server's log.
    """

    request_id = ""

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


class InvalidRequest(FMplexClientError):
    """The request itself is wrong: sending it again cannot help."""


class UnknownTask(FMplexClientError):
    """There is no such task, or its files are broken and the server refuses it by name."""


class ServerUnavailable(FMplexClientError):
    """Nobody answered, or the answer was "later", until the caller's time ran out."""


class DeadlineExceeded(FMplexClientError):
    """The timeout passed, here or in the server's queue, before there was an answer."""


class ServerError(FMplexClientError):
    """The server failed at something that is not the caller's fault."""


_BY_STATUS: dict[str, type[FMplexClientError]] = {
    "400": InvalidRequest,
    "404": UnknownTask,
    "408": DeadlineExceeded,
    "499": DeadlineExceeded,
    "503": ServerUnavailable,
    "504": DeadlineExceeded,
    "StatusCode.INVALID_ARGUMENT": InvalidRequest,
    "StatusCode.NOT_FOUND": UnknownTask,
    "StatusCode.UNAVAILABLE": ServerUnavailable,
    "StatusCode.CANCELLED": DeadlineExceeded,
    "StatusCode.DEADLINE_EXCEEDED": DeadlineExceeded,
}

# Triton 2.51 has no HTTP status for CANCELLED and sends it as 400, the status of a wrong request; over gRPC it keeps
# its code. So over HTTP the words decide.
_DEADLINE = re.compile(r"deadline|timed out|timeout (expired|exceeded)|cancell?ed", re.IGNORECASE)


# Triton over a host whose process has ended, until somebody starts another server; over both protocols an inner error.
_NO_HOST = re.compile(r"stub process .*(not healthy|unhealthy)", re.IGNORECASE)


def error_from(status: str | None, message: str | None) -> FMplexClientError:
    """The error for a status (``"404"`` or ``"StatusCode.NOT_FOUND"``) and the server's message."""
    text = message or "the server gave no reason"
    kind = _BY_STATUS.get(status or "", ServerError)
    if status == "400" and _DEADLINE.search(text):
        kind = DeadlineExceeded
    if kind is ServerError and _NO_HOST.search(text):
        kind = ServerUnavailable
    return kind(text, status)
