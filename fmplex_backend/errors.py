"""Every error that FMplex raises on purpose; each carries the code that the wire shows.

    FMplexError
    ├── InvalidInput      the caller's request cannot be answered as it stands      INVALID_ARG
    │   └── AccessDenied  the vFM answers only to tokens, and this is none of them  INVALID_ARG
    ├── NotFound          no such vFM, port or file                                 NOT_FOUND
    │   └── Refused       it is there, but broken, and names what is wrong with it  NOT_FOUND
    ├── Unavailable       try again later: loading, queue full, shutting down       UNAVAILABLE
    ├── DeadlineExceeded  the row's deadline passed before it could run             CANCELLED
    ├── EngineFailure     the engine died or broke its contract                     INTERNAL
    └── Quarantined       the vFM's rows kill engines; its owner must act           INTERNAL

Messages name the thing, the value and what would be right; whatever they quote, they can be sent: at most `MAX_MESSAGE`
characters, all of which have a form in UTF-8. Only ``model.py`` turns codes into Triton's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Code = Literal["INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


MAX_MESSAGE = 4096
"""gRPC's clients take 8 KiB of headers, of which a message is one."""
_CUT = " … "


class FMplexError(Exception):
    """Base of all of them; ``code`` is the name of a Triton error code."""

    code: ClassVar[Code] = "INTERNAL"

    def __init__(self, message: object = "") -> None:
        """Of a ``message`` that is too long the middle is left out; a lone surrogate becomes its escape."""
        text = str(message).encode("utf-8", "backslashreplace").decode()
        if len(text) > MAX_MESSAGE:
            part = (MAX_MESSAGE - len(_CUT)) // 2
            text = text[:part] + _CUT + text[-part:]
        super().__init__(text)

    def again(self) -> FMplexError:
        """Another one that says the same; to be raised of an error that is kept, which would gather every traceback."""
        return type(self)(*self.args)


class InvalidInput(FMplexError):
    """The request itself is wrong; sending it again cannot help."""

    code = "INVALID_ARG"


class AccessDenied(InvalidInput):
    """The vFM answers only to tokens, and the request has none of them. Triton has no code of its own for that."""


class NotFound(FMplexError):
    """The vFM, port, file or column that was asked for does not exist."""

    code = "NOT_FOUND"


class Refused(NotFound):
    """A vFM, bundle or physical FM whose files break a rule; the message says which and how to mend it."""


class Unavailable(FMplexError):
    """Nothing is wrong with the request; it may be sent again after a while."""

    code = "UNAVAILABLE"


class DeadlineExceeded(FMplexError):
    """The deadline passed before the row was run; no forward pass was spent on it."""

    code = "CANCELLED"


class EngineFailure(FMplexError):
    """An engine died, hung or answered something that is not an answer."""

    code = "INTERNAL"


class Quarantined(FMplexError):
    """A row of the vFM has killed one engine after the other; none of its rows is run until somebody has acted."""

    code = "INTERNAL"
