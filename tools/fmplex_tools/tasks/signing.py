"""Keys, and signatures of versions (`fmplex_backend.repository.signed`): made here, and looked at without a server."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.config import KEY_PATTERN, KEY_PREFIX, fm_settings
from fmplex_backend.repository.safe_files import MAX_TENSOR_BYTES, read_bytes
from fmplex_backend.repository.signed import (
    SIGNATURE_FILE,
    FileDigest,
    Signature,
    Statement,
    list_files,
    verify,
)
from fmplex_tools.tasks import publish
from fmplex_tools.tasks.manage import show_task


def make_key(path: Path) -> str:
    """Write a new private key to ``path`` (PEM, for its owner alone) and the public one to ``path``.pub; the latter.

    Raises `InvalidInput` where there is a file already, or none can be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(pem.decode())
        with path.with_name(f"{path.name}.pub").open("x") as file:
            file.write(public_key(key) + "\n")
    except OSError as error:
        raise InvalidInput(f"key {str(error.filename)!r}: cannot be written ({error.strerror})") from None
    return public_key(key)


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``path``. Raises `InvalidInput` where it is not an Ed25519 key in PEM without a password."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidInput(f"key {str(path)!r}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"key {str(path)!r}: no private key in PEM format without a password: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput(f"key {str(path)!r}: it is no Ed25519 key; `fmplex task keygen FILE` makes one")
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """As ``trusted_keys`` has it."""
    return KEY_PREFIX + key.public_key().public_bytes_raw().hex()


def read_trusted(trusted: str) -> frozenset[str]:
    """Public keys as ``trusted_keys`` has them, or the name of a file with one a line. Raises `InvalidInput`."""
    text = trusted
    if not trusted.startswith(KEY_PREFIX):
        try:
            text = Path(trusted).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{trusted!r} is neither {KEY_PREFIX}HEX nor a file that can be read: {error}") from None
    keys = re.split(r"[,\s]+", text.strip())
    for key in keys:
        if not re.fullmatch(KEY_PATTERN, key):
            raise InvalidInput(f"public key {key!r}: it is {KEY_PREFIX} and 64 hexadecimal digits")
    return frozenset(keys)


def sign_version(version_dir: Path, vfm: str, key: Ed25519PrivateKey, target: Path | None = None) -> None:
    """Write the signature of a version of ``vfm`` into it, or into the folder ``target``."""
    files = {
        name: FileDigest.of(read_bytes(version_dir / name, version_dir, MAX_TENSOR_BYTES))
        for name in list_files(version_dir)
    }
    statement = Statement(vfm=vfm, files=files, key=public_key(key))
    signature = Signature(signed=statement, signature=key.sign(statement.message).hex())
    ((target or version_dir) / SIGNATURE_FILE).write_text(signature.model_dump_json(indent=2) + "\n", encoding="utf-8")


def sign_task(repository: Path, name: str, key: Ed25519PrivateKey, version: int | None = None) -> int:
    """Sign a version of the vFM ``name`` as its files are now, by default the one to be served; its number."""
    folder = _version_dir(repository, name, version)
    with publish.staged(repository) as scratch:
        sign_version(folder, name, key, scratch)
        os.replace(scratch / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    return int(folder.name)


def verify_task(
    repository: Path, name: str, trusted: frozenset[str] | None = None, version: int | None = None
) -> tuple[int, Signature]:
    """The number and the signature of a version of the vFM ``name``, by default the one to be served.

    ``trusted`` are the physical FM's ``trusted_keys`` unless given. Raises `Refused` saying what differs.
    """
    folder = _version_dir(repository, name, version)
    if trusted is None:
        fm = show_task(repository, name).fm
        trusted = fm_settings(repository / str(fm)).trusted
        if not trusted:
            raise InvalidInput(f"physical FM {fm!r} has no trusted_keys; say by --trusted whose signature is good")
    try:
        return int(folder.name), verify(folder, folder.parent, name, trusted)
    except Refused as error:
        raise Refused(f"vFM {name!r}: version {folder.name}: {error}") from None


def _version_dir(repository: Path, name: str, version: int | None) -> Path:
    info = show_task(repository, name)
    if info.bundle:
        raise InvalidInput(f"bundle {name!r} has no versions of its own; sign those of its vFMs")
    number = version or info.version
    if number not in info.versions:
        known = ", ".join(map(str, info.versions)) or "none"
        raise InvalidInput(f"vFM {name!r} has no version {number}; it has {known}")
    return repository / name / str(number)
