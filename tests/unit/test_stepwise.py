"""Heads on series: forecasts by a head of one's own, gaps filled, odd steps told; served, and learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support.modal import Served, Task
from support.small import STEPS, make_fracast, make_patchtst, series
from support.tiny import make_fm_repository
from typer.testing import CliRunner

from fmplex_backend.errors import FMplexError, InvalidInput, Refused
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.golden import read_golden
from fmplex_tools.task_cli import app
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.forecasting import train_forecast
from fmplex_tools.tasks.stepwise import train_stepwise
from fmplex_tools.tasks.windows import cut_pasts, cut_windows, hide

Array = NDArray[Any]
GAPS = {"observed": True}
BOTH = {"backwards": True}
TASKS = {
    1: Task("imputation", pooling="none", encoder=GAPS),
    2: Task("imputation", pooling="none", encoder=GAPS | BOTH),
    3: Task("anomaly", pooling="none"),
    4: Task("anomaly", pooling="none", encoder=GAPS | BOTH),
    5: Task("forecast", pooling="last+mean", horizon=3, labels=("0.1", "0.5", "0.9")),
    6: Task("forecast", pooling="max+levels", horizon=2, labels=("0.5",), encoder=GAPS),
    7: Task(pooling="mean+levels"),
}


def backbone_of(name: str, folder: Path) -> Path:
    if name == "fracast":
        return make_fracast(folder)
    return make_patchtst(folder, patch_stride=8)


def row_of(number: int, seed: int) -> dict[str, Array]:
    values = series(10 * number + seed, 1 + seed, (30, 24, 45)[seed])
    if not TASKS[number].encoder.get("observed"):
        return {"series": values[None]}
    known = np.ones(values.shape, bool)
    known[:, 5:8], known[0, -1] = False, False
    return {"series": np.where(known, values, 1e6)[None].astype(np.float32), "observed": known[None]}


class Plain:
    """The answer as one would write it down: a channel, and a position, at a time."""

    def __init__(self, served: Served) -> None:
        self.served, self.own = served, served.backbone.facts.input

    def vectors(self, values: Array, known: Array) -> tuple[Array, Array, Array]:
        """Of one channel of the context: of each position, of the pooled parts it has none; and its levels."""
        features = self.served.backbone.forward(
            self.served.backbone.collate([{"series": values[None], "observed": known[None]}])
        )
        assert features.levels is not None
        pooled = {part: features.of_sequences(part)[0].numpy() for part in ("last", "mean", "max", "levels")}
        return features.hidden[0, features.special :].numpy(), features.levels[0].numpy(), pooled  # type: ignore[return-value]

    def answer(self, number: int, row: dict[str, Array]) -> Array:
        task, head = TASKS[number], load_file(self.served.folder / str(number) / "head.safetensors")
        tokens = self.served.encode(number, row)
        channels = row["series"].shape[1]
        told = []
        for channel in range(channels):
            values, known = tokens["series"][channel], tokens["observed"][channel]
            hidden, (mean, deviation), pooled = self.vectors(values, known)
            if task.kind == "forecast":
                read = np.concatenate([pooled[part] for part in task.pooling.split("+")])  # type: ignore[call-overload]
                raw = (head["weight"] @ read + head["bias"]).reshape(task.horizon or 0, -1)
                told.append(np.sort(raw, 1) * deviation + mean)
                continue
            after = None
            if task.encoder.get("backwards"):
                after, _, _ = self.vectors(values[::-1].copy(), known[::-1].copy())
            ahead, made = int(task.kind == "anomaly"), []
            for position in range(len(hidden)):
                parts = [hidden[position - ahead] if position >= ahead else np.zeros_like(hidden[0])]
                if after is not None:
                    there = len(hidden) - 1 - position - ahead
                    parts.append(after[there] if there >= 0 else np.zeros_like(hidden[0]))
                made.append(head["weight"] @ np.concatenate(parts) + head["bias"])
            guess = np.concatenate(made)
            if task.kind == "imputation":
                told.append(np.where(known, values, guess * deviation + mean))
            else:
                told.append(np.where(known, np.abs((values - mean) / deviation - guess) / head["scale"], 0))
        return np.array(told)


@pytest.mark.parametrize("name", ["fracast", "patchtst"])
def test_served_among_others(tmp_path: Path, name: str) -> None:
    served = Served(tmp_path, backbone_of(name, tmp_path / "backbone"))
    for number, task in TASKS.items():
        served.put(number, task, served.backbone.model)
    plain = Plain(served)
    asked = [(number, row_of(number, seed)) for seed in range(3) for number in TASKS]
    answers = served.answers(asked)
    for (number, row), answer in zip(asked, answers, strict=True):
        alone = served.answers([(number, row)])[0]
        np.testing.assert_allclose(answer, alone, rtol=1e-4, atol=1e-4)
        if number != 7:
            wanted = plain.answer(number, row)
            scale = max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(answer / scale, wanted / scale, atol=2e-5, err_msg=f"{number}")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Task("imputation", pooling="none"), "'encoder.observed' is true"),
        (Task("imputation", pooling="mean", encoder=GAPS), "pooling 'none', head 'linear', and no 'labels'"),
        (Task("anomaly", pooling="none", labels=("odd",)), "no 'labels'"),
        (Task(encoder=BOTH), "'encoder.backwards' is for kinds anomaly, imputation, not for 'classification'"),
        (Task("forecast", pooling="each:mean", horizon=2, labels=("0.5",)), "of each channel by itself without"),
        (Task("forecast", pooling="none", horizon=2, labels=("0.5",)), "head 'linear' and a pooling"),
    ],
)
def test_what_cannot_be(tmp_path: Path, task: Task, says: str) -> None:
    served = Served(tmp_path, make_fracast(tmp_path / "backbone"))
    with pytest.raises(ValueError, match=says):
        served.put(1, task, None)


def test_patches_that_share_steps(tmp_path: Path) -> None:
    served = Served(tmp_path, make_patchtst(tmp_path / "backbone"))  # each patch begins in the middle of the last one
    with pytest.raises(Refused, match="does not give each step to one position"):
        served.put(1, Task("anomaly", pooling="none"), None)


def waves(rows: int, steps: int, channels: int = 1) -> Examples:
    """Sines with periods of 8 to 16, some noise, and levels of their own."""
    rng, at = np.random.default_rng(0), np.arange(steps)
    made = []
    for _ in range(rows):
        period, start = rng.uniform(8, 16, (channels, 1)), rng.uniform(0, 6, (channels, 1))
        values = np.sin(2 * np.pi * at / period + start) + 0.05 * rng.standard_normal((channels, steps))
        made.append((rng.uniform(1, 9, (channels, 1)) * values + rng.uniform(-50, 50)).astype(np.float32))
    return Examples(rows=tuple(made), source="waves")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    (folder / "repository").mkdir()
    return make_fm_repository(folder / "repository", "fracast", make_fracast(folder / "backbone"))


def test_a_forecast_is_learnt(repository: Path) -> None:
    result = train_forecast(repository, "sales", waves(12, 120, 2), fm="fracast", horizon=4)
    quality = result.artifact.quality
    assert quality is not None
    assert quality.value > 0.3
    assert (quality.baseline_metric, quality.baseline, quality.test_rows) == ("last value", 0, 12)
    version = repository / "sales" / "1"
    golden = read_golden(version, version, result.artifact, 3)
    assert golden is not None
    assert golden.arrays[0].shape == (2, 4, 3)
    assert (np.diff(golden.arrays[0], axis=-1) >= 0).all()


@pytest.mark.parametrize("kind", ["imputation", "anomaly"])
def test_gaps_and_oddness_are_learnt(repository: Path, tmp_path: Path, kind: Any) -> None:
    """On random weights, so not well; but what is served is what was learnt."""
    rows = waves(40, STEPS)
    result = train_stepwise(repository, f"{kind}_task", rows, fm="fracast", kind=kind, window=STEPS)
    quality = result.artifact.quality
    assert quality is not None
    assert (quality.train_rows, quality.test_rows) == (32, 8)
    assert quality.value > (0 if kind == "imputation" else 0.5)
    version = repository / f"{kind}_task" / "1"
    golden = read_golden(version, version, result.artifact, STEPS)
    assert golden is not None
    assert golden.arrays[0].shape == (1, STEPS)
    if kind == "anomaly":
        served = Served(tmp_path, Path(fm_settings(repository / "fracast").backbone))
        served.load(1, version)
        scores = np.concatenate(served.answers([(1, {"series": row[None]}) for row in rows.rows]))
        assert 0.005 < (scores > 1).mean() < 0.03  # 1 % of what it was learnt from


def test_from_the_command_line(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [row.tolist() for row in waves(6, 80).rows]
    rows[0][0][3] = None
    file.write_text("".join(json.dumps({"values": row}) + "\n" for row in rows))
    common = ["-r", str(repository), "--data", str(file), "--series", "values"]
    runner = CliRunner()
    for command in (["impute", "fill", *common], ["anomaly", "odd", "--one-way", "--window", "32", *common]):
        done = runner.invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "held out" in done.output
    done = runner.invoke(app, ["forecast", "next", "--horizon", "5", "--quantiles", "0.25,0.75", *common])
    assert done.exit_code == 0, done.output
    assert "0.25, 0.75" in done.output
    done = runner.invoke(app, ["forecast", "other", *common])
    assert done.exit_code == 1


def test_data_that_teaches_nothing(repository: Path) -> None:
    rows = (np.zeros((1, 40), np.float32), np.zeros((1, 9), np.float32))
    with pytest.raises(InvalidInput, match="row 2 of the data has 9 steps; to learn to forecast 4 and to test it"):
        train_forecast(repository, "short", Examples(rows=rows), fm="fracast", horizon=4)
    with pytest.raises(InvalidInput, match=r"quantiles \[0.5, 1.5\]: give distinct numbers between 0 and 1"):
        train_forecast(repository, "short", waves(2, 60), fm="fracast", horizon=4, quantiles=(0.5, 1.5))
    with pytest.raises(InvalidInput, match="the data makes 1 window of 64 steps; it takes at least 2"):
        train_stepwise(repository, "one", waves(1, STEPS), fm="fracast", kind="anomaly", window=STEPS)
    with pytest.raises(FMplexError):
        train_stepwise(repository, "bad name", waves(4, STEPS), fm="fracast", kind="anomaly")


@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 40))
def test_windows_are_all_of_a_series(lengths: list[int], steps: int) -> None:
    rows = [np.arange(length, dtype=np.float32)[None] for length in lengths]
    for row in rows:
        pieces = cut_windows([row], steps)
        assert all(piece.shape[1] == min(steps, row.shape[1]) for piece in pieces)
        assert set(np.concatenate([piece[0] for piece in pieces])) == set(row[0])


@given(st.integers(1, 12), st.integers(0, 60))
def test_what_is_tested_is_not_learnt(horizon: int, more: int) -> None:
    steps = max(8, horizon) + 2 * horizon + more
    train, [test] = cut_pasts([np.arange(steps, dtype=np.float32)[None]], horizon)
    assert test.ahead[0].tolist() == list(range(steps - horizon, steps))
    for piece in train:
        assert piece.ahead.shape == (1, horizon)
        assert piece.ahead[0, -1] < steps - horizon
        assert piece.past[0, -1] + 1 == piece.ahead[0, 0]


@given(st.integers(1, 50), st.integers(0, 9), st.integers(0, 99))
def test_hiding_leaves_something(steps: int, missing: int, seed: int) -> None:
    known = np.ones((2, steps), bool)
    known[0, 1 : 1 + missing] = False
    hidden = hide(known, 0.2, 8, np.random.default_rng(seed))
    assert not (hidden & ~known).any()
    assert (known & ~hidden).any(1).all()
