"""Data out of packages: safe unpacking of hostile archives, and a real fetch from an index on this machine."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex_backend.errors import InvalidInput, NotFound, Unavailable
from fmplex_tools import archives
from fmplex_tools.archives import unpack
from fmplex_tools.packages import fetch_package


def _wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _sdist(path: Path, members: list[tarfile.TarInfo], content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def _link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_a_member_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    for archive in (_wheel(tmp_path / "p.whl", {name: b"x"}), _sdist(tmp_path / "p.tar.gz", [tarfile.TarInfo(name)])):
        with pytest.raises(InvalidInput, match="outside its folder"):
            unpack(archive, tmp_path / f"to-{archive.suffix}")
    assert not (tmp_path / "evil").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    archive = _sdist(tmp_path / "p.tar.gz", [_link("p/link", "/etc/passwd"), tarfile.TarInfo("p/file")])
    unpack(archive, tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").rglob("*")) == ["file", "p"]


def test_an_archive_larger_than_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(InvalidInput, match="unpacks to more than 1000 bytes"):
        unpack(_wheel(tmp_path / "p.whl", {"zeros": bytes(5000)}), tmp_path / "to")


@pytest.mark.parametrize("name", ["p.whl", "p.tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive at all")
    with pytest.raises(InvalidInput, match=f"{name}: not a readable archive"):
        unpack(tmp_path / name, tmp_path / "to")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A simple index with one package, served over HTTP from this machine; its sha256."""
    folder = tmp_path / "index"
    (folder / "toy").mkdir(parents=True)
    wheel = _wheel(
        folder / "toy-1.0-py3-none-any.whl", {"toy/data.txt": b"hello", "toy/__init__.py": b"raise SystemExit"}
    )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "toy" / "index.html").write_text(f'<a href="../{wheel.name}#sha256={digest}">{wheel.name}</a>')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield digest
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_package_is_fetched_once_and_whole(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_package("toy", "1.0", sha256=index)
    assert (folder / "toy" / "data.txt").read_text() == "hello"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # nobody answers there
    assert fetch_package("toy", "1.0", sha256=index) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["toy-1.0"]
    with pytest.raises(InvalidInput, match="expected 00"):
        fetch_package("toy", "1.0", sha256="00")


def test_what_the_index_does_not_have_is_named(index: str) -> None:
    with pytest.raises(NotFound, match=r"no wheel of version '2\.0'; the index has 1\.0"):
        fetch_package("toy", "2.0")
    with pytest.raises(NotFound, match="no sdist"):
        fetch_package("toy", "1.0", kind="sdist")
    with pytest.raises(NotFound, match="no such package"):
        fetch_package("nothing", "1.0")


def test_a_wrong_hash_leaves_nothing(index: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=rf"sha256 {index}, expected 00"):
        fetch_package("toy", "1.0", sha256="00")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_no_network_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="cannot be reached"):
        fetch_package("toy", "1.0")
