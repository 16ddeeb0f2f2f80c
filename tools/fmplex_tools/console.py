"""What every subcommand prints through."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(error: object) -> None:
    """One clear line on standard error."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
