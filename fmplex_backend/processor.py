"""What this machine's processor calls itself."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """As Linux tells it, or the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == "model name"), platform.machine())
