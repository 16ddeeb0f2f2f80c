"""What is packed to be sent arrives as it was."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.messages import RunBatch, Tokens

ROWS = st.lists(
    st.fixed_dictionaries(
        {"input_ids": st.lists(st.integers(0, 30_000), min_size=1, max_size=6)},
        optional={"token_type_ids": st.lists(st.integers(0, 1), max_size=6)},
    ),
    max_size=5,
)


@given(rows=ROWS)
def test_a_batch_arrives_as_it_was(rows: list[dict[str, list[int]]]) -> None:
    dtypes = {"input_ids": np.int32, "token_type_ids": np.int8}
    sent: list[Tokens] = [{name: np.array(values, dtypes[name]) for name, values in row.items()} for row in rows]
    batch = RunBatch(3, list(range(len(sent))), sent, [7, 9])
    got = pickle.loads(pickle.dumps(batch))
    assert (got.batch, got.generations, got.upcoming) == (batch.batch, batch.generations, batch.upcoming)
    assert [row.keys() for row in got.rows] == [row.keys() for row in sent]
    for row, wanted in zip(got.rows, sent, strict=True):
        for name, array in wanted.items():
            assert row[name].dtype == array.dtype
            np.testing.assert_array_equal(row[name], array)


def test_rows_of_any_shape() -> None:
    """Images and the like: what is joined is the first dimension."""
    sent: list[Tokens] = [{"pixel_values": np.full((3, 4, 5), i, np.float32)} for i in range(3)]
    got = pickle.loads(pickle.dumps(RunBatch(1, [1, 2, 3], sent)))
    for row, wanted in zip(got.rows, sent, strict=True):
        np.testing.assert_array_equal(row["pixel_values"], wanted["pixel_values"])
