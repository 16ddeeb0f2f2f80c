"""Arguments that several commands of ``fmplex task`` take, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="Name of the vFM.")]
Repository = Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")]
Fm = Annotated[str, typer.Option("--fm", help="Physical FM that it runs on.")]
Weight = Annotated[float | None, typer.Option("--weight", help="Share of the device (default 1).")]
SignWith = Annotated[
    Path | None, typer.Option("--sign-with", metavar="KEY", help="Private key to sign the version with.")
]


def names(text: str) -> tuple[str, ...]:
    """Those between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def policy(weight: float | None) -> dict[str, str]:
    """As parameters of a vFM."""
    return {} if weight is None else {"weight": f"{weight:g}"}


def key_in(sign_with: Path | None) -> Any:
    """The private key, where one is given."""
    if sign_with is None:
        return None
    from fmplex_tools.tasks.signing import load_key

    return load_key(sign_with)


def before_torch() -> None:
    """To be called before torch is loaded: OpenMP's threads that spin stall for seconds on a shared CPU."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
