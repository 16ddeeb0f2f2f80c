"""Time-series vFMs: channels, missing values and levels, and parity with plain transformers + PEFT in mixed batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.modal import Served, Task, headed, with_adapter
from support.small import CONTEXT, QV, make_patchtst, series
from transformers import PatchTSTModel

from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.encoders.base import EncodedRow
from fmplex_backend.encoders.series import SeriesEncoder
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.modalities import SeriesSpec

TASKS = {
    1: Task(),
    2: Task("regression", 2, "mean+std+levels"),
    3: Task(outputs=4, pooling="each:mean+levels", encoder={"channels": 2}, lora={"r": 4, "target_modules": QV}),
    4: Task("multi_label", 5, "each:last+max", encoder={"channels": 3}),
    5: Task("embedding", pooling="each:cls", head="identity", encoder={"channels": 2, "observed": True}),
    6: Task("embedding", pooling="none", head="identity"),
    7: Task(encoder={"observed": True}, lora={"r": 3, "use_dora": True, "target_modules": QV}),
    8: Task(encoder={"max_length": 20}, lora={"r": 2, "target_modules": "all-linear"}),
}


def row_of(values: NDArray[np.float32], task: Task) -> dict[str, NDArray[Any]]:
    if not task.encoder.get("observed"):
        return {"series": np.nan_to_num(values)[None]}
    return {"series": values[None], "observed": np.isfinite(values)[None]}


def test_parity_alone_and_mixed(tmp_path: Path) -> None:
    folder = make_patchtst(tmp_path / "backbone")
    plain = PatchTSTModel.from_pretrained(folder).eval()
    served = Served(tmp_path, folder)
    versions = {number: served.put(number, task, plain) for number, task in TASKS.items()}
    rows = {}
    for number, task in TASKS.items():
        for seed in range(4):
            channels = task.encoder.get("channels", 1 + seed)
            values = series(10 * number + seed, channels, (12, 32, 45, 20)[seed])
            if task.encoder.get("observed"):
                values[:, 3:6], values[0, -2] = np.nan, np.inf
            rows[number, seed] = values

    def expected(number: int, seed: int) -> NDArray[np.float32]:
        task, values = TASKS[number], rows[number, seed]
        if not task.encoder.get("observed"):
            values = np.nan_to_num(values)
        values = values[:, -task.encoder.get("max_length", CONTEXT) :]
        known = np.zeros((len(values), CONTEXT), bool)
        known[:, CONTEXT - values.shape[1] :] = np.isfinite(values)
        means = [row[np.isfinite(row)].astype(np.float64).mean() for row in values]
        whole = np.repeat(np.array(means, np.float32)[:, None], CONTEXT, 1)
        whole[known] = values[np.isfinite(values)]
        model = with_adapter(plain, versions[number])
        read = []
        with torch.inference_mode():
            for channel in range(len(values)):
                made = model(
                    past_values=torch.from_numpy(whole[channel]).view(1, -1, 1),
                    past_observed_mask=torch.from_numpy(known[channel]).view(1, -1, 1),
                )
                read.append((made.last_hidden_state[0, 0], torch.cat([made.loc.flatten(), made.scale.flatten()])))
        each = task.pooling.startswith("each:")
        groups = [[one] for one in read] if each else [read]
        found = []
        for group in groups:
            patches = torch.cat([hidden[1:] for hidden, _ in group])
            mean = patches.mean(0)
            parts = {
                "mean": mean, "cls": group[0][0][0], "last": patches[-1], "max": patches.amax(0),
                "std": (patches - mean).square().mean(0).sqrt(),
                "levels": torch.stack([own for _, own in group]).mean(0),
            }  # fmt: skip
            if task.pooling == "none":
                return headed(versions[number], served.artifacts[number], patches)
            found += [parts[part] for part in task.pooling.removeprefix("each:").split("+")]
        return headed(versions[number], served.artifacts[number], torch.cat(found))

    asked = list(rows)
    random.Random(0).shuffle(asked)
    sent = [(number, row_of(rows[number, seed], TASKS[number])) for number, seed in asked]
    for (number, seed), row, answer in zip(asked, sent, served.answers(sent), strict=True):
        wanted = expected(number, seed)
        atol = 2e-5 * max(1, float(np.abs(wanted).max()))
        np.testing.assert_allclose(answer[: len(wanted)], wanted, atol=atol, err_msg=f"{number} {seed}")
        np.testing.assert_allclose(served.answers([row])[0], wanted, atol=atol, err_msg=f"{number} {seed} alone")


OWN = SeriesInput(context=CONTEXT, positions=8, special=1)


def encode(spec: SeriesSpec, values: NDArray[Any], observed: NDArray[np.bool_] | None = None) -> EncodedRow:
    inputs = {"series": values.astype(np.float32)} | ({} if observed is None else {"observed": observed})
    [row] = SeriesEncoder(OWN).encode(spec, inputs)
    return row


def test_short_long_and_missing() -> None:
    row = encode(SeriesSpec(), np.array([[[1, 2, 3], [10, 20, 60]]]))
    assert row.size == 16
    np.testing.assert_array_equal(row.tokens["series"][:, -4:], [[2, 1, 2, 3], [30, 10, 20, 60]])
    assert row.tokens["observed"].sum() == 6
    long = encode(SeriesSpec(), np.arange(40.0).reshape(1, 1, 40))
    np.testing.assert_array_equal(long.tokens["series"][0], np.arange(8.0, 40))
    gaps = encode(SeriesSpec(observed=True), np.array([[[1, np.nan, 3]]]), np.array([[[True, False, True]]]))
    np.testing.assert_array_equal(gaps.tokens["series"][0, -3:], [1, 2, 3])
    np.testing.assert_array_equal(gaps.tokens["observed"][0, -3:], [True, False, True])


@pytest.mark.parametrize(
    ("spec", "values", "says"),
    [
        ({}, np.zeros((1, 2, 0)), "input 'series' has 2 channels of 0 steps; it is empty"),
        ({}, np.zeros((1, 0, 5)), "input 'series' has 0 channels of 5 steps; it is empty"),
        ({"channels": 2}, np.zeros((1, 3, 5)), "input 'series' has 3 channels; it has 2"),
        ({}, np.zeros((1, 1025, 1)), "input 'series' has 1025 channels; it has at most 1024"),
        ({"truncation": False}, np.zeros((1, 1, 33)), "input 'series' has 33 steps, the limit is 32"),
        ({}, np.array([[[1, 2], [3, np.nan]]]), "row 0: series is nan at channel 1, step 1; what has no value is told"),
        ({}, np.array([[[1, np.inf]]]), "row 0: series is inf at channel 0, step 1"),
        ({"observed": True}, np.zeros((1, 1, 4)), "with 'series', 'observed' must be given"),
        ({}, np.zeros((2, 3)), r"input 'series' has shape \[2, 3\]; it is \[rows, any, any\]"),
    ],
)
def test_bad_series(spec: dict[str, Any], values: NDArray[Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        encode(SeriesSpec(**spec), values)


def test_bad_masks() -> None:
    spec = SeriesSpec(observed=True)
    with pytest.raises(InvalidInput, match=r"'observed' has shape \[1, 1, 2\]; it is that of 'series', \[1, 1, 3\]"):
        encode(spec, np.zeros((1, 1, 3)), np.ones((1, 1, 2), bool))
    with pytest.raises(InvalidInput, match="row 0: series has no value at all in channel 1"):
        encode(spec, np.zeros((1, 2, 3)), np.array([[[True] * 3, [False] * 3]]))
    with pytest.raises(InvalidInput, match="row 0: series is nan at channel 0, step 1"):
        encode(spec, np.array([[[0, np.nan]]]), np.ones((1, 1, 2), bool))


def test_backbones_and_heads_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="channel_attention is True"):
        Served(tmp_path, make_patchtst(tmp_path / "mixing", channel_attention=True))
    served = Served(tmp_path, make_patchtst(tmp_path / "backbone"))
    with pytest.raises(Refused, match=r"encoder.max_length 33 exceeds the backbone's 32 steps"):
        served.put(1, Task(encoder={"max_length": 33}), None)
    with pytest.raises(ValueError, match=r"reads each channel, so 'encoder.channels' must say how many"):
        served.put(2, Task(pooling="each:mean"), None)
