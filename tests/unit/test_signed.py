"""Signed versions: everything that may differ is noticed, by name, and what is read is what was verified."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.site import Site
from typer.testing import CliRunner

from fmplex_backend.errors import FMplexError, InvalidInput, Refused
from fmplex_backend.repository import signed
from fmplex_backend.repository.config import CONFIG_FILE, FMSettings, read_config, write_config
from fmplex_backend.repository.signed import SIGNATURE_FILE, Signature, verified, verify
from fmplex_tools.task_cli import app
from fmplex_tools.tasks.signing import load_key, make_key, public_key, read_trusted, sign_version

FILES = {"vfm.json": b'{"kind": 1}', "head.safetensors": b"weights", "adapter/adapter_config.json": b"{}"}
RUN = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def trusted(key: Ed25519PrivateKey) -> frozenset[str]:
    return frozenset([public_key(Ed25519PrivateKey.generate()), public_key(key)])


@pytest.fixture
def version(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    """Version 1 of vFM ``a``, signed."""
    return make_version(tmp_path / "a" / "1", key)


def make_version(folder: Path, key: Ed25519PrivateKey) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    sign_version(folder, "a", key)
    return folder


def refusal(version: Path, vfm: str, trusted: frozenset[str]) -> str:
    with pytest.raises(Refused) as caught:
        verify(version, version.parent, vfm, trusted)
    return str(caught.value)


# ---- what is verified ----


def test_as_it_was_signed(version: Path, key: Ed25519PrivateKey, trusted: frozenset[str]) -> None:
    statement = verify(version, version.parent, "a", trusted).signed
    assert (statement.vfm, statement.key, set(statement.files)) == ("a", public_key(key), set(FILES))


def outcome(version: Path, trusted: frozenset[str]) -> Signature | str:
    try:
        return verify(version, version.parent, "a", trusted)
    except Refused as error:
        return str(error)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*FILES, SIGNATURE_FILE]), place=st.integers(0, 2000), flip=st.integers(1, 255))
def test_any_byte(version: Path, trusted: frozenset[str], name: str, place: int, flip: int) -> None:
    """A byte of any file; in the signature's own file white space may change."""
    path = version / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[place % len(bad)] ^= flip
    before = outcome(version, trusted)
    path.write_bytes(bad)
    after = outcome(version, trusted)
    path.write_bytes(good)
    if isinstance(after, str):
        assert name in after
    else:
        assert name == SIGNATURE_FILE
        assert json.loads(bad) == json.loads(good)
        assert after == before


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.sampled_from(sorted(FILES)),
    new=st.text("abc.-_ ", min_size=1, max_size=6),
    folder=st.sampled_from(["", "adapter/", "z/"]),
)
def test_any_name(version: Path, trusted: frozenset[str], old: str, new: str, folder: str) -> None:
    new = f"{folder}new{new}"
    (version / new).parent.mkdir(exist_ok=True)
    (version / old).rename(version / new)
    after = outcome(version, trusted)
    (version / new).rename(version / old)
    assert str(after).endswith(f"has signed: {old} is missing, {new} was added")
    assert isinstance(outcome(version, trusted), Signature)


def edited(**changes: Any) -> Callable[[Path], None]:
    """Changes what is signed, the signature stays."""

    def edit(version: Path) -> None:
        content = json.loads((version / SIGNATURE_FILE).read_text())
        content["signed"] |= changes
        (version / SIGNATURE_FILE).write_text(json.dumps(content))

    return edit


def added(name: str) -> Callable[[Path], None]:
    return lambda version: (version / name).touch()


def swapped(version: Path) -> None:
    """Two files under each other's name."""
    names = (version / "vfm.json", version / "head.safetensors")
    contents = [path.read_bytes() for path in names]
    for path, content in zip(names, reversed(contents), strict=True):
        path.write_bytes(content)


def linked(version: Path) -> None:
    """The right content, from where it can change without the version's being touched."""
    (version / "vfm.json").rename(version.parent / "elsewhere")
    (version / "vfm.json").symlink_to("../elsewhere")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda v: (v / "vfm.json").unlink(), "vfm.json is missing"),
        (added("golden.json"), "golden.json was added"),
        (added("adapter/signature.json"), "adapter/signature.json was added"),
        (swapped, "head.safetensors was changed, vfm.json was changed"),
        (lambda v: [(v / f"x{i}").touch() for i in range(9)], "x3 was added and 5 more"),
        (linked, "'vfm.json' is a link, or no plain file"),
        (lambda v: (v / "folder").symlink_to("."), "'folder' is a link"),
        (lambda v: os.mkfifo(v / "pipe"), "'pipe' is a link, or no plain file"),
        (lambda v: (v / "a\nb").touch(), r"'a\nb' is a link, or no plain file"),
        (lambda v: (v / SIGNATURE_FILE).unlink(), "it is not signed"),
        (lambda v: (v / SIGNATURE_FILE).write_text("{"), "is not valid JSON"),
        (lambda v: (v / SIGNATURE_FILE).write_text("[]"), "signature.json: "),
        (edited(vfm="b"), "the signature is not that of"),
        (edited(files={}), "the signature is not that of"),
        (edited(format=2), "key 'signed.format' is 2"),
        (edited(extra=1), "unknown key 'signed.extra'"),
        (edited(files={"vfm.json": {"size": "11", "sha256": "0" * 64}}), "key 'signed.files.vfm.json.size' is '11'"),
        (edited(key="ed25519:00"), "key 'signed.key' is 'ed25519:00'"),
        (edited(key="ed25519:" + "0" * 64), "which is none of the trusted keys"),
    ],
)
def test_what_is_refused(version: Path, trusted: frozenset[str], break_it: Callable[[Path], Any], says: str) -> None:
    break_it(version)
    assert says in refusal(version, "a", trusted)


def test_a_signature_counts_for_one_name_and_any_number(version: Path, trusted: frozenset[str]) -> None:
    """A version goes back by being renamed; it does not come to answer as another vFM."""
    again = version.rename(version.parent / "7")
    assert verify(again, again.parent, "a", trusted)
    copy = shutil.copytree(again, again.parents[1] / "b" / "1")
    assert "signed as a version of vFM 'a', and for no other name" in refusal(copy, "b", trusted)


def test_a_key_that_is_not_trusted(version: Path, trusted: frozenset[str]) -> None:
    stranger = Ed25519PrivateKey.generate()
    sign_version(version, "a", stranger)
    assert f"signed by {public_key(stranger)}, which is none of the trusted keys" in refusal(version, "a", trusted)


# ---- what is verified is what is read ----


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_that_change_later_are_not_read(version: Path, trusted: frozenset[str], tmp_path: Path) -> None:
    with verified(version, "a", trusted, tmp_path) as (readable, _):
        for name in FILES:
            (version / name).write_bytes(b"other")
        (version / "golden.json").touch()
        assert content(readable) == FILES
    assert not readable.exists()


def test_files_that_change_as_soon_as_they_are_read(
    version: Path, trusted: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_swap(path: Path, root: Path, limit: int) -> bytes:
        content = path.read_bytes()
        path.write_bytes(content[::-1])
        return content

    monkeypatch.setattr(signed, "read_bytes", read_and_swap)
    with verified(version, "a", trusted, tmp_path) as (readable, _):
        assert content(readable) == FILES
        assert (version / "head.safetensors").read_bytes() == b"sthgiew"


def test_without_keys_the_folder_itself_is_read(version: Path, tmp_path: Path) -> None:
    (version / SIGNATURE_FILE).unlink()
    with verified(version, "a", frozenset(), tmp_path) as (readable, signer):
        assert (readable, signer) == (version, None)


# ---- the host ----


def test_only_what_is_signed_is_served(tmp_path: Path, tiny_backbone: Path, key: Ed25519PrivateKey) -> None:
    site = Site(tmp_path, tiny_backbone, trusted_keys=public_key(key))
    try:
        folder = site.add("a", 0)
        site.scan()
        assert site.served(0) is None
        assert site.record("a")["reason"].startswith("vFM 'a': version 1: it is not signed (signature.json is missing)")
        sign_version(folder / "1", "a", key)
        site.scan()
        assert site.served(0) == ("a", 1, 1)
        assert (site.record("a")["reason"], site.record("a")["signed_by"]) == (None, public_key(key))
        second = site.version("a", 2)
        sign_version(second, "a", key)
        os.replace(folder / "1/head.safetensors", second / "head.safetensors")
        site.scan()
        assert site.served(0) == ("a", 1, 1)
        assert "version 2: it is not what" in site.record("a")["reason"]
        assert site.record("a")["reason"].endswith("has signed: head.safetensors was changed")
        assert any("head.safetensors was changed; generation 1 goes on serving" in line for line in site.log)
        assert [path.name for path in site.work.iterdir()] == ["1.safetensors"]
        second.rename(tmp_path / "second")
        shutil.copytree(tmp_path / "second", folder / "3")
        sign_version(folder / "3", "a", key)
        site.scan()
        assert site.served(0) == ("a", 3, 2)
    finally:
        site.dispatcher.stop()


@pytest.mark.parametrize("value", ["one", "ed25519:12", "ed25519:" + "A" * 64, f"ed25519:{'0' * 64},"])
def test_what_is_no_key_is_refused(value: str) -> None:
    with pytest.raises(Refused, match="parameter 'trusted_keys'"):
        FMSettings.parse({"backbone": "x", "trusted_keys": value}, "physical FM 'minilm'")


# ---- keys and commands ----


def test_keys(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert public_key(load_key(tmp_path / "key.pem")) == public
    assert read_trusted(str(tmp_path / "key.pem.pub")) == read_trusted(public) == {public}
    pem = (tmp_path / "key.pem").read_text()
    with pytest.raises(InvalidInput, match=r"key\.pem': cannot be written \(File exists\)"):
        make_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_text() == pem


def test_what_is_no_private_key(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    other = generate_private_key(SECP256R1())
    for made, protection, says in (
        (key, BestAvailableEncryption(b"secret"), "without a password"),
        (other, NoEncryption(), "it is no Ed25519 key"),
    ):
        (tmp_path / "key").write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
        with pytest.raises(InvalidInput, match=says):
            load_key(tmp_path / "key")
    (tmp_path / "key").write_text(public_key(key))
    for path, says in ((tmp_path / "key", "no private key in PEM format"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InvalidInput, match=says):
            load_key(path)


@pytest.mark.parametrize("value", ["nothing", "ed25519:12", f"ed25519:{'0' * 64},sha256:12"])
def test_what_is_no_public_key(value: str) -> None:
    with pytest.raises(FMplexError, match="ed25519:"):
        read_trusted(value)


def test_the_commands(small_repository: Path, tmp_path: Path) -> None:
    def task(*line: str, says: str, code: int = 0) -> None:
        result = RUN.invoke(app, [*line, *([] if line[0] == "keygen" else ["-r", str(small_repository)])])
        assert result.exit_code == code, result.output
        assert says in " ".join(result.output.split())
        assert "Traceback" not in result.output

    private = tmp_path / "release.pem"
    task("keygen", str(private), says="ed25519:")
    public = (tmp_path / "release.pem.pub").read_text().strip()
    task("verify", "good", says="has no trusted_keys; say by --trusted", code=1)
    task("verify", "good", "--trusted", public, says="vFM 'good': version 1: it is not signed", code=1)
    task("sign", "good", "--key", str(private), says=f"good: version 1 is signed by {public}")
    task("verify", "good", "--trusted", f"{private}.pub", says=f"version 1 is as {public} has signed it, ")
    config = read_config(small_repository / "tiny" / CONFIG_FILE)
    config.parameters["trusted_keys"].string_value = public
    write_config(small_repository / "tiny" / CONFIG_FILE, config)
    task("verify", "good", "--version", "1", says="has signed it")
    (small_repository / "good/1/extra").touch()
    task("verify", "good", says="extra was added", code=1)
    task("verify", "good", "--version", "2", says="has no version 2; it has 1", code=1)
    task("sign", "tiny", "--key", str(private), says="no vFM 'tiny'", code=1)
