"""Lines of tritonserver's output, with those of the hosts among them, as text or as JSON objects."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone

_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_TRITON = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ (\S+:\d+)\] (.*)")
_MARK = "fmplex: "


def json_line(line: str) -> str:
    """``line`` as a JSON object with ``time``, ``level``, ``message`` and, of Triton's own, ``source``.

    A host's line is one already, and stays as it is.
    """
    if _object(line) is not None:
        return line
    made = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "level": "info"}
    if (found := _TRITON.match(line)) is not None:
        made |= {"level": _LEVELS[found[1]], "source": found[2]}
    return json.dumps(made | {"message": _unquoted(found[3]) if found else line}, ensure_ascii=False)


def is_information(line: str) -> bool:
    """Whether it is a line of Triton's own, neither a warning nor an error."""
    return (found := _TRITON.match(line)) is not None and found[1] == "I"


def host_message(line: str) -> str | None:
    """What a host says in ``line``, in either format; None where it is not a host's."""
    if (told := _object(line)) is not None:
        return str(told["message"]) if "event" in told else None
    found = _TRITON.match(line)
    message = _unquoted(found[3]) if found else ""
    return message.removeprefix(_MARK) if message.startswith(_MARK) else None


def _object(line: str) -> dict[str, object] | None:
    if not line.startswith('{"time"'):
        return None
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _unquoted(message: str) -> str:
    """Triton writes messages as JSON strings, most of them."""
    try:
        return str(json.loads(message)) if message.startswith('"') else message
    except ValueError:
        return message
