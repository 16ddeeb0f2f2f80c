"""Rows of other modalities than texts for benchmarks, and the error of shares."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from fmplex_backend.repository.modalities import TENSORS
from fmplex_tools.bench.fair.generator import POOL, make_requests
from fmplex_tools.bench.fair.streams import Stream
from fmplex_tools.bench.families.measure import Window, _share_error


@pytest.mark.parametrize("modality", ["image", "audio", "series"])
def test_rows_are_as_a_vfm_takes_them(modality: str) -> None:
    made = make_requests(Stream("one", rows=3, modality=modality), seed=0)
    assert len(made) == POOL
    assert len({request.raw_input_contents[0] for request in made}) == POOL
    for given, content in zip(made[0].inputs, made[0].raw_input_contents, strict=True):
        tensor = TENSORS[given.name]
        assert tensor.fits(tuple(given.shape))
        assert given.datatype == {"TYPE_STRING": "BYTES"}.get(tensor.data_type, tensor.data_type.removeprefix("TYPE_"))
        if given.datatype != "BYTES":
            assert len(content) == 4 * np.prod(given.shape)
    if modality == "image":
        (size,) = struct.unpack_from("<I", made[0].raw_input_contents[0])
        with Image.open(io.BytesIO(made[0].raw_input_contents[0][4 : 4 + size])) as image:
            assert image.format == "PNG"


def test_error_of_shares() -> None:
    weights = {"a": 1.0, "b": 3.0}
    assert _share_error(Window(1.0, 1.0, {"a": 2.0, "b": 6.0}, 0.1), weights) == 0
    assert _share_error(Window(1.0, 1.0, {"a": 3.0, "b": 5.0}, 0.1), weights) == pytest.approx(0.5)
