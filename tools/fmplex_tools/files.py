"""Files that are there whole or as they were before."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` into ``path`` at once: whoever reads it, or kills this process, finds the old file or the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def put_in_place(made: Path, target: Path) -> None:
    """Rename the folder ``made`` to ``target``; where another process has put it there meanwhile, its one stays."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise
