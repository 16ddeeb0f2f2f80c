"""From a caller's rows to tensors: files, arrays, sounds and series, in requests of one shape each."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmplex_client import InvalidRequest
from fmplex_client.rows import chunks, read_wav

RED = np.full((4, 6, 3), (200, 10, 10), np.uint8)


def write_wav(path: Path, samples: Any, width: int = 2, channels: int = 1, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.asarray(samples).tobytes())
    return path


def test_images_by_path_by_bytes_and_as_arrays(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    [made] = chunks(("image",), [path, str(path), path.read_bytes(), RED, Image.fromarray(RED)], None, 8)
    assert made["image"].shape == (5, 1)
    for file in made["image"][:, 0]:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), RED)
    [raw] = chunks(("pixels",), [RED, Image.fromarray(RED)], None, 8)
    np.testing.assert_array_equal(raw["pixels"], [RED, RED])


def test_sounds(tmp_path: Path) -> None:
    samples = np.array([0, 16384, -32768], "<i2")
    [made] = chunks(
        ("audio", "sample_rate"), [write_wav(tmp_path / "a.wav", samples), ([0, 0.5, -1.0], 16_000)], None, 8
    )
    np.testing.assert_array_equal(made["audio"], [[0, 0.5, -1]] * 2)
    np.testing.assert_array_equal(made["sample_rate"], [[16_000]] * 2)
    stereo = write_wav(tmp_path / "b.wav", np.array([[128, 128], [255, 1]], np.uint8), 1, 2, 8000)
    found, rate = read_wav(stereo)
    assert rate == 8000
    np.testing.assert_allclose(found, [0, 0], atol=1e-6)


def test_series() -> None:
    gaps = [[1.0, np.nan], [2.0, 3.0]]
    [made] = chunks(("series",), [[1, 2, 3], np.arange(3)], None, 8)
    assert made["series"].shape == (2, 1, 3)
    [made] = chunks(("series", "observed"), [gaps], None, 8)
    np.testing.assert_array_equal(made["observed"], [[[True, False], [True, True]]])


@given(lengths=st.lists(st.integers(1, 4), max_size=30), limit=st.integers(1, 5))
def test_requests_have_one_shape_each_and_keep_the_order(lengths: list[int], limit: int) -> None:
    rows = [np.full(length, number, np.float32) for number, length in enumerate(lengths)]
    made = chunks(("series",), rows, None, limit)
    assert all(1 <= len(part["series"]) <= limit for part in made)
    assert [row[0, 0] for part in made for row in part["series"]] == list(range(len(rows)))
    assert [row.shape[1] for part in made for row in part["series"]] == lengths


@pytest.mark.parametrize(
    ("inputs", "row", "says"),
    [
        (("image",), "no/such/file.png", "row 0: cannot read 'no/such/file.png': No such file"),
        (("image",), 3, "row 0 is of type int; it is a file's path or bytes, or an image"),
        (("pixels",), np.zeros((2, 2)), r"row 0 is float64 \[2, 2\]; pixels are uint8 \[height, width, 3\]"),
        (("audio", "sample_rate"), "no.wav", "row 0: cannot read 'no.wav' as WAV"),
        (("audio", "sample_rate"), [0.1], r"row 0 is of type list; it is a WAV file's path, or \(samples, rate\)"),
        (("audio", "sample_rate"), (np.zeros(3, np.int16), 16_000), r"row 0 is int16 \[3\]; samples are floats"),
        (("series",), ["a"], "row 0 is <U1"),
        (("series",), np.zeros((1, 2, 3)), r"row 0 is float64 \[1, 2, 3\]; a series is numbers, \[channels, time\]"),
        (("other",), 1, "a task that reads other is none of FMplex's"),
    ],
)
def test_rows_that_are_none(inputs: tuple[str, ...], row: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        chunks(inputs, [row], None, 8)


def test_pairs_are_for_texts() -> None:
    with pytest.raises(InvalidRequest, match="text_pairs go with texts; this task reads series"):
        chunks(("series",), [[1]], ["a"], 8)
