"""What every subcommand shares: where it prints, and which repository it means."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

DEFAULT_REPOSITORY = Path("model_repository")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(error: object) -> None:
    """One clear line on standard error."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
