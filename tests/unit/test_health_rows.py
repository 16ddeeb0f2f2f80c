"""`fmplex health` asks each vFM a row that it reads."""

from __future__ import annotations

import pytest

from fmplex_client.rows import chunks
from fmplex_tools.server.health import row_for

INPUTS = ("text", "image", "pixels", "image text", "audio sample_rate", "series", "series observed")


@pytest.mark.parametrize("names", INPUTS)
def test_a_row_is_what_a_task_with_these_inputs_reads(names: str) -> None:
    inputs = names.split()
    [tensors] = chunks(inputs, [row_for(inputs, channels=3)], None, 8)
    assert {name for name in inputs if name != "sample_rate"} <= tensors.keys()
    if "series" in inputs:
        assert tensors["series"].shape == (1, 3, 32)
