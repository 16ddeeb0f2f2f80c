"""Files from strangers: inside one folder, of bounded size, JSON and safetensors only."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from fmplex_backend.errors import Refused
from fmplex_backend.repository import safe_files
from fmplex_backend.repository.safe_files import read_json, read_tensors


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "vfm").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    return tmp_path / "vfm"


def _link(target: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "link.json").symlink_to(target)
        return root / "link.json"

    return make


def _link_folder(root: Path) -> Path:
    (root / "folder").symlink_to("..")
    return root / "folder/secret.json"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_link("../secret.json"), "leads out of the vFM's folder"),
        (_link("/etc/hostname"), "leads out of the vFM's folder"),
        (_link_folder, "leads out of the vFM's folder"),
        (lambda root: root / "../secret.json", "leads out of the vFM's folder"),
        (_link("nothing.json"), "link.json is missing"),
        (lambda root: root / "absent.json", "absent.json is missing"),
        (lambda root: root, "is missing"),
    ],
    ids=["relative", "absolute", "folder", "dots", "dangling", "absent", "a folder"],
)
def test_what_is_not_read(root: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(Refused) as caught:
        read_json(make(root), root)
    assert says in str(caught.value)
    assert str(root) not in str(caught.value)


def test_links_inside_are_fine(root: Path) -> None:
    (root / "real.json").write_text('{"a": 1}')
    assert read_json(_link("real.json")(root), root) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000, '{"a": 1}}', "\udcff"])
def test_bad_json(root: Path, text: str) -> None:
    (root / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Refused, match=r"x\.json is not valid JSON"):
        read_json(root / "x.json", root)


def test_size_limits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_files, "MAX_JSON_BYTES", 4)
    monkeypatch.setattr(safe_files, "MAX_TENSOR_BYTES", 4)
    (root / "x.json").write_text("12345")
    with pytest.raises(Refused, match="larger than 4 bytes"):
        read_json(root / "x.json", root)
    with pytest.raises(Refused, match="larger than 4 bytes"):
        read_tensors(root / "x.json", root)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_every_width(root: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([[1.5, -2.0, 0.0], [3.25, 1e-3, 100.0]]).to(dtype)
    save_torch({"w": values}, root / "w.safetensors")
    read = read_tensors(root / "w.safetensors", root)["w"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.float().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(root: Path, value: float) -> None:
    save_file({"good": np.zeros(2, np.float32), "w": np.array([0, value], np.float32)}, root / "w.safetensors")
    with pytest.raises(Refused, match="'w' has NaN or infinite"):
        read_tensors(root / "w.safetensors", root)


def test_overflow_to_fp32_is_not_finite(root: Path) -> None:
    save_file({"w": np.array([1e300])}, root / "w.safetensors")
    with pytest.raises(Refused, match="'w' has NaN or infinite"), np.errstate(over="ignore"):
        read_tensors(root / "w.safetensors", root)


def test_integers_are_no_weights(root: Path) -> None:
    save_file({"w": np.zeros(2, np.int8)}, root / "w.safetensors")
    with pytest.raises(Refused, match="'w' has dtype I8"):
        read_tensors(root / "w.safetensors", root)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.binary(max_size=40), at=st.integers(0, 200), cut=st.integers(0, 200))
def test_damaged_safetensors_are_read_whole_or_refused(root: Path, damage: bytes, at: int, cut: int) -> None:
    path = root / "w.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}, path)
    data = bytearray(path.read_bytes())
    data[at : at + len(damage)] = damage
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(Refused):  # anything else that is raised fails the test
        tensors = read_tensors(path, root)
        assert all(t.dtype == np.float32 and np.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize("shape", [[1] * 33, [0, 1 << 63], [0, 1 << 40, 1 << 40]])
def test_shapes_that_numpy_does_not_have(root: Path, shape: list[int]) -> None:
    size = 0 if 0 in shape else 4
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    (root / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * size)
    with pytest.raises(Refused, match="'w' has a shape that no weights have"):
        read_tensors(root / "w.safetensors", root)


def test_a_header_that_promises_too_much(root: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (root / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(Refused, match="not a whole safetensors file"):
        read_tensors(root / "w.safetensors", root)
