"""What every refusal must be, whatever it quotes."""

from __future__ import annotations

from fmplex_backend.errors import MAX_MESSAGE, FMplexError


def check_told(error: FMplexError, secret: str | None = None) -> None:
    """Fail where the error could not be sent: a message is UTF-8, says something, and fits into gRPC's headers.

    Nor may it have ``secret`` in it.
    """
    message = str(error)
    assert secret is None or secret not in message
    assert message.strip()
    assert len(message) <= MAX_MESSAGE
    message.encode()
