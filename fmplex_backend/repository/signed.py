"""``signature.json``: who vouches for a version; a physical FM with ``trusted_keys`` serves no others.

Ed25519 over the vFM's name, and the name, size and SHA-256 of every file of the version but this one::

    {"signed": {"format": 1,
                "vfm": "sentiment",
                "files": {"vfm.json": {"size": 612, "sha256": "9f…"}, "adapter/adapter_config.json": …},
                "key": "ed25519:1c…"},     the public key, in the words of a physical FM's ``trusted_keys``
     "signature": "07…"}

1. A signed version is served under the name that it was signed for: as a copy under another vFM's name it is refused.
2. Its number is not signed. Renaming a version's folder is a way to roll back; and who can write a vFM's folder chooses
   among its signed versions anyway, by ``version_policy``. To take a version back for good, trust another key.
3. What was verified is what is read: files are hashed while they are copied into a private folder, and read there.
4. ``config.pbtxt`` is not signed, since policy is edited while it serves.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmplex_backend.errors import Refused
from fmplex_backend.repository.config import KEY_PATTERN, KEY_PREFIX, explain
from fmplex_backend.repository.safe_files import MAX_TENSOR_BYTES, read_bytes, read_json

SIGNATURE_FILE = "signature.json"
_PURPOSE = b"FMplex: a version of a vFM\n"
"""Begins what is signed, so that a signature of anything else can never pass for one of these."""
_SHOWN = 4


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileDigest(_Strict):
    """What a file was when it was signed."""

    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, content: bytes) -> FileDigest:
        """The digest of a file's ``content``."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


class Statement(_Strict):
    """What is signed."""

    format: Literal[1] = 1
    vfm: str
    files: dict[str, FileDigest]
    """Path below the version's folder, with ``/``."""
    key: Annotated[str, Field(pattern=f"^{KEY_PATTERN}$")]

    @property
    def message(self) -> bytes:
        """The bytes that the signature is of: the same for the same content, however the file is written."""
        return _PURPOSE + json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()


class Signature(_Strict):
    """The whole of ``signature.json``."""

    signed: Statement
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    """Of `Statement.message`, by the key that it names."""


def list_files(version_dir: Path) -> list[str]:
    """Every file of a version but its signature, as `Statement.files` names them. Raises `Refused` for links."""
    names = []
    for path in sorted(version_dir.rglob("*")):
        name = path.relative_to(version_dir).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()) or not name.isprintable():
            raise Refused(f"{name!r} is a link, or no plain file; a signed version holds files and folders alone")
        if path.is_file() and name != SIGNATURE_FILE:
            names.append(name)
    return names


def verify(version_dir: Path, root: Path, vfm: str, trusted: Collection[str], copy: Path | None = None) -> Signature:
    """The signature of a version of ``vfm``, by one of the ``trusted`` keys, with every file as it was signed.

    ``copy`` is a folder to be made, with exactly the bytes that were verified. Raises `Refused` saying what differs;
    reads nothing outside ``root``, the vFM's folder.
    """
    signature = _read_signature(version_dir, root)
    signed = signature.signed
    if signed.key not in trusted:
        raise Refused(f"{SIGNATURE_FILE}: signed by {signed.key}, which is none of the trusted keys")
    _check_signature(signature)
    if signed.vfm != vfm:
        raise Refused(f"{SIGNATURE_FILE}: signed as a version of vFM {signed.vfm!r}, and for no other name")
    found = list_files(version_dir)
    problems = [f"{name} is missing" for name in sorted(signed.files.keys() - set(found))]
    problems += [f"{name} was added" for name in found if name not in signed.files]
    for name in found:
        if name in signed.files and not _same(version_dir / name, root, signed.files[name], copy and copy / name):
            problems.append(f"{name} was changed")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise Refused(f"it is not what {signed.key} has signed: {', '.join(problems[:_SHOWN])}{more}")
    return signature


@contextmanager
def verified(
    version_dir: Path, vfm: str, trusted: Collection[str], work_dir: Path
) -> Iterator[tuple[Path, str | None]]:
    """The folder to read a version from, and the key that has signed it.

    Without ``trusted`` keys it is ``version_dir`` itself, signed or not; else a copy of what was verified, of the same
    name, in ``work_dir`` for as long as the block lasts. Raises `Refused` as `verify` does.
    """
    if not trusted:
        yield version_dir, None
        return
    with tempfile.TemporaryDirectory(prefix="verified-", dir=work_dir) as scratch:
        copy = Path(scratch, version_dir.name)
        signature = verify(version_dir, version_dir.parent, vfm, trusted, copy)
        yield copy, signature.signed.key


def _read_signature(version_dir: Path, root: Path) -> Signature:
    path = version_dir / SIGNATURE_FILE
    if not path.exists() and not path.is_symlink():
        raise Refused(
            f"it is not signed ({SIGNATURE_FILE} is missing), and the physical FM has trusted_keys; sign it with "
            f"`fmplex task sign {root.name} --key FILE`"
        )
    try:
        return Signature.model_validate(read_json(path, root))
    except ValidationError as error:
        raise Refused(f"{SIGNATURE_FILE}: {explain(error, Signature, 'key')}") from None


def _check_signature(signature: Signature) -> None:
    from cryptography.exceptions import InvalidSignature  # 40 ms that only hosts with trusted keys spend
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signed = signature.signed
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.key.removeprefix(KEY_PREFIX)))
    try:
        key.verify(bytes.fromhex(signature.signature), signed.message)
    except InvalidSignature:
        raise Refused(f"{SIGNATURE_FILE}: the signature is not that of {signed.key}; the file was edited") from None


def _same(path: Path, root: Path, digest: FileDigest, copy: Path | None) -> bool:
    """Whether the file has this digest; then ``copy`` is made of the very bytes that have it."""
    content = read_bytes(path, root, MAX_TENSOR_BYTES)
    if FileDigest.of(content) != digest:
        return False
    if copy is not None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    return True
