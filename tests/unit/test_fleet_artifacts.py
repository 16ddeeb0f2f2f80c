"""Versions in a store: what comes out is what went in, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmplex_backend.errors import NotFound, Refused, Unavailable
from fmplex_tools.fleet.artifacts import MANIFEST, fetch, manifest_of, push


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "sentiment/1"
    (folder / "adapter").mkdir(parents=True)
    (folder / "vfm.json").write_text("{}")
    (folder / "adapter/adapter_model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (folder / "empty").touch()
    return folder


def test_there_and_back(tmp_path: Path, version: Path) -> None:
    store = str(tmp_path / "store")
    digest = push(version, store)
    assert push(version, store) == digest == manifest_of(version).hash
    fetch(digest, store, tmp_path / "node/sentiment/1")
    assert manifest_of(tmp_path / "node/sentiment/1") == manifest_of(version)
    assert [path.name for path in (tmp_path / "node/sentiment").iterdir()] == ["1"]


def test_a_store_by_url(version: Path, tmp_path: Path) -> None:
    digest = push(version, "memory://models")
    fetch(digest, "memory://models", tmp_path / "out")
    assert manifest_of(tmp_path / "out").hash == digest


def test_what_was_changed_is_refused(tmp_path: Path, version: Path) -> None:
    store = tmp_path / "store"
    digest = push(version, str(store))
    weights = store / digest / "files/adapter/adapter_model.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-1], good + b"x", good[:-1] + b"x"):
        weights.write_bytes(bad)
        with pytest.raises(Refused, match=r"adapter_model\.safetensors of version .* is not what its manifest says"):
            fetch(digest, str(store), tmp_path / "out")
    weights.unlink()
    with pytest.raises(Refused, match="is missing"):
        fetch(digest, str(store), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = store / digest / MANIFEST
    manifest.write_text(manifest.read_text().replace("vfm.json", "vfm.jsom"))
    with pytest.raises(Refused, match="has another hash"):
        fetch(digest, str(store), tmp_path / "out")


def test_a_manifest_that_leads_elsewhere(tmp_path: Path) -> None:
    import hashlib

    for name in ("../evil", "/etc/evil", "a/../../evil"):
        text = json.dumps({"files": {name: {"sha256": "0" * 64, "size": 1}}})
        digest = hashlib.sha256(text.encode()).hexdigest()
        (tmp_path / "store" / digest).mkdir(parents=True)
        (tmp_path / "store" / digest / MANIFEST).write_text(text)
        with pytest.raises(Refused, match="which is outside of it"):
            fetch(digest, str(tmp_path / "store"), tmp_path / "out")


def test_what_is_not_there(tmp_path: Path, version: Path) -> None:
    with pytest.raises(NotFound, match="has no version abc"):
        fetch("abc", str(tmp_path), tmp_path / "out")
    with pytest.raises(NotFound, match="no version"):
        push(tmp_path / "nothing", str(tmp_path / "store"))
    with pytest.raises(NotFound, match="cannot be used"):
        push(version, "nosuch://place")
    (version / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="is no plain file"):
        push(version, str(tmp_path / "store"))
    (version / "link").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be written"):
        push(version, str(tmp_path / "file"))
