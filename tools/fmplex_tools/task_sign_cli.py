"""``fmplex task keygen | sign | verify``: who vouches for a version. A thin layer over `fmplex_tools.tasks.signing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex_tools.console import DEFAULT_REPOSITORY, err, out
from fmplex_tools.task_arguments import Name, Repository

app = typer.Typer()

Version = Annotated[int | None, typer.Option("--version", min=1, help="By default the one to be served.")]


@app.command("keygen")
def keygen(file: Annotated[Path, typer.Argument(help="Where the private key goes; it must not be there yet.")]) -> None:
    """Make a key to sign versions with: the private one in FILE, for its owner alone, the public one in FILE.pub.

    Examples:

      fmplex task keygen ~/release.pem
    """
    from fmplex_tools.tasks.signing import make_key

    public = make_key(file)
    err.print(
        f"{file} is the private key, {file}.pub the public one. With this line in its config.pbtxt,", soft_wrap=True
    )
    err.print("a physical FM serves only what the key has signed:")
    out.print(f'parameters {{ key: "trusted_keys" value {{ string_value: "{public}" }} }}', soft_wrap=True)


@app.command("sign")
def sign(
    name: Name,
    key: Annotated[Path, typer.Option("--key", "-k", help="Private key, Ed25519 in PEM (`fmplex task keygen`).")],
    version: Version = None,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Sign a version of a vFM as its files are now: they count as this vFM's, whole and unchanged.

    Whoever has the key vouches for what was in the folder; to sign before anybody else can write there, use
    `--sign-with` of create, train and import.

    Examples:

      fmplex task sign mail_folder --key ~/release.pem

      fmplex task sign mail_folder --version 2 --key ~/release.pem
    """
    from fmplex_tools.tasks.signing import load_key, public_key, sign_task

    private = load_key(key)
    signed = sign_task(repository, name, private, version)
    out.print(f"{name}: version {signed} is signed by {public_key(private)}", soft_wrap=True)


@app.command("verify")
def verify(
    name: Name,
    trusted: Annotated[
        str | None, typer.Option("--trusted", help="Public keys, or a file of them; else the physical FM's own.")
    ] = None,
    version: Version = None,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Is a version of a vFM what a trusted key has signed? If not, say what differs; exit code 1.

    Examples:

      fmplex task verify mail_folder

      fmplex task verify mail_folder --version 2 --trusted ~/release.pem.pub
    """
    from fmplex_tools.tasks.signing import read_trusted, verify_task

    keys = None if trusted is None else read_trusted(trusted)
    number, signature = verify_task(repository, name, keys, version)
    signed = signature.signed
    out.print(f"{name}: version {number} is as {signed.key} has signed it, {len(signed.files)} files", soft_wrap=True)
