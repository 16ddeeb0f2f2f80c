"""Fracast against its formulas written out step by step in numpy, alone and in mixed batches with adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from support.modal import Served, Task, headed, with_adapter
from support.small import (
    HORIZON,
    KERNEL,
    PERIODS,
    STAGES,
    STEPS,
    make_fracast,
    series,
)
from support.tiny import make_fm_repository

from fmplex_backend.backbones.fracast import periods_of
from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.golden import read_golden
from fmplex_tools.tasks.forecasting import create_forecast

Array = NDArray[Any]


def strongest_periods(values: Array, known: Array) -> list[int]:
    """By a Fourier transform written as a sum."""
    filled = np.where(known, values, values[known].mean())
    filled = filled - filled.mean()
    at = np.arange(STEPS)
    power = np.array([abs((filled * np.exp(-2j * np.pi * k * at / STEPS)).sum()) ** 2 for k in range(STEPS // 2 + 1)])
    part = power[1:] / power[1:].sum()
    threshold = math.log(len(part) / 0.05) / len(part)
    peaks = [
        k
        for k in range(1, len(part) - 1)
        if part[k] > part[k - 1] and part[k] > part[k + 1] and part[k] >= threshold and 1 <= k <= STEPS // 2 - 1
    ]
    best = sorted(peaks, key=lambda k: -part[k])[:PERIODS]
    return [round(STEPS / (k + 1)) for k in best] + [0] * (PERIODS - len(best))


def norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps) * weight


def recency_of(step: int) -> list[float]:
    away = (step - (STEPS - 1)) / STEPS
    decays = [math.exp(-rate * abs(away)) for rate in (0.5, 2, 8)]
    return [away, float(np.sign(away)) * math.log1p(abs(away)) / math.log(2), *decays]


def convolved(x: Array, weight: Array, bias: Array, dilation: int) -> Array:
    """Each feature in time, by what came before."""
    past = np.zeros_like(x)
    for step in range(len(x)):
        for tap in range(KERNEL):
            source = step - (KERNEL - 1 - tap) * dilation
            if source >= 0:
                past[step] += x[source] * weight[:, 0, tap]
        past[step] += bias
    return past


def gated(weights: dict[str, Array], part: str, x: Array) -> Array:
    gate, value = np.split(x @ weights[f"{part}.up.weight"].T + weights[f"{part}.up.bias"], 2, -1)
    inner = gate / (1 + np.exp(-gate)) * value
    down: Array = inner @ weights[f"{part}.down.weight"].T + weights[f"{part}.down.bias"]
    return down


def block(weights: dict[str, Array], part: str, x: Array, dilation: int) -> Array:
    past = convolved(x, weights[f"{part}.dw_weight"], weights[f"{part}.dw_bias"], dilation)
    x = norm(x + past @ weights[f"{part}.pw.weight"].T + weights[f"{part}.pw.bias"], weights[f"{part}.norm1.weight"])
    return norm(x + gated(weights, f"{part}.ffn", x), weights[f"{part}.norm2.weight"])


def forecast(weights: dict[str, Array], hidden: Array, values: Array, known: Array) -> Array:
    """[horizon, quantiles], in the units of ``values``."""
    low, high = values[known].min(), values[known].max()
    scaled = np.where(known, (values - low) / (high - low), 0)
    steps = range(STEPS, STEPS + HORIZON)
    summary = np.concatenate([hidden.mean(0), hidden[-1]])
    x = np.array([weights["summary_proj.weight"] @ np.concatenate([recency_of(step), summary]) for step in steps])
    x = x + weights["summary_proj.bias"] + weights["queries"]
    x = norm(x + gated(weights, "decoder_ffns.0", x), weights["decoder_norms.0.weight"])
    for layer in (0, 1):
        part = f"fc_blocks.{layer}"
        past = convolved(x, weights[f"{part}.dw_weight"], weights[f"{part}.dw_bias"], 2**layer)
        x = norm(x + past, weights[f"{part}.norm.weight"])
    period = max(1, strongest_periods(scaled, known)[0])
    phases = [int((step % period) / period * 4) for step in range(STEPS)]
    means = []
    for step in steps:
        same = [scaled[at] for at in range(STEPS) if known[at] and phases[at] == int((step % period) / period * 4)]
        means.append(np.mean(same) if same else scaled[known].mean())
    ahead = np.array([[mean, *recency_of(step)] for mean, step in zip(means, steps, strict=True)])
    ahead = ahead @ weights["future_conv.in_proj.weight"].T + weights["future_conv.in_proj.bias"]
    both = np.concatenate([hidden[-16:], ahead])
    for layer in (0, 1):
        both = block(weights, "future_conv.block", both, 2**layer)
    x = x + both[-HORIZON:] @ weights["future_conv.out_proj.weight"].T + weights["future_conv.out_proj.bias"]
    return (x @ weights["out_proj.weight"].T + weights["out_proj.bias"]) * (high - low) + low


def plainly(weights: dict[str, Array], values: Array, known: Array) -> Array:
    """[steps, width] of one channel."""
    low, high = values[known].min(), values[known].max()
    scaled = np.where(known, (values - low) / max(high - low, 1e-5), 0)
    rows = []
    periods = strongest_periods(scaled, known)
    for step in range(STEPS):
        away = (step - (STEPS - 1)) / STEPS
        recency = [
            away,
            np.sign(away) * math.log1p(abs(away)) / math.log(2),
            *(math.exp(-r * abs(away)) for r in (0.5, 2, 8)),
        ]
        x = weights["in_proj.weight"] @ np.array([scaled[step], float(known[step]), *recency]) + weights["in_proj.bias"]
        waves = []
        for period in periods:
            for harmonic in (1, 2):
                angle = 2 * math.pi * step / max(period, 1) * harmonic
                waves += [math.sin(angle) * (period > 0), math.cos(angle) * (period > 0)]
        rows.append(x + weights["periodic.proj.weight"] @ np.array(waves) + weights["periodic.proj.bias"])
    x = np.array(rows)
    for stage in range(STAGES):
        angles = [stage / 2.0**k * math.pi for k in range(2)]
        both = weights["scale.to_gb.weight"] @ np.array([*map(math.sin, angles), *map(math.cos, angles)])
        factor, shift = np.split(both + weights["scale.to_gb.bias"], 2)
        x = x * (1 + factor) + shift
        x = block(weights, "block", x, 2**stage)
    return norm(x, weights["norm.weight"])


def wave(seed: int, channels: int = 1, steps: int = 50) -> Array:
    at = np.arange(steps)
    return (series(seed, channels, steps) / 20 + 3 * np.sin(2 * np.pi * at / 8)).astype(np.float32)


def test_what_a_step_is(tmp_path: Path) -> None:
    backbone = load_backbone(str(make_fracast(tmp_path / "backbone")), "fp32", "cpu")
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in backbone.model.state_dict().items()}
    for seed in range(3):
        values, known = known_series(seed)
        row = {"series": values[None].astype(np.float32), "observed": known[None]}
        with torch.inference_mode():
            features = backbone.forward(backbone.collate([row]))
        np.testing.assert_allclose(features.hidden[0].numpy(), plainly(weights, values, known), atol=2e-4)
        own = features.hidden[0][torch.from_numpy(known)]
        torch.testing.assert_close(features.pooled("mean+max+last")[0], torch.cat([own.mean(0), own.amax(0), own[-1]]))
        assert features.levels is not None
        wanted = torch.tensor([values[known].mean(), values[known].std()])
        torch.testing.assert_close(features.levels[0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_periods() -> None:
    at = torch.arange(STEPS).float()
    both = torch.sin(2 * math.pi * at / 16) + 0.8 * torch.sin(2 * math.pi * at / 4)
    noise = torch.randn(STEPS, generator=torch.Generator().manual_seed(0))
    known = torch.ones(2, STEPS, dtype=torch.bool)
    found = periods_of(torch.stack([both, noise]), known, 3, 2, 0.05)
    assert found.tolist() == [[16, 4, 0], [0, 0, 0]]


def test_mixed_batches_with_adapters(tmp_path: Path) -> None:
    folder = make_fracast(tmp_path / "backbone")
    served = Served(tmp_path, folder)
    lora = {"r": 2, "target_modules": ["pw", "up"]}
    tasks = {
        1: Task(pooling="mean+levels"),
        2: Task(pooling="each:mean+last", encoder={"channels": 2}, lora=lora),
        3: Task("regression", 2, "max+std", lora={"r": 3, "use_dora": True, "target_modules": ["down"]}),
    }
    core = served.backbone.model
    versions = {number: served.put(number, task, core) for number, task in tasks.items()}
    rows = {(number, seed): wave(seed + number, 2, 30 + seed) for number in tasks for seed in range(3)}
    sent = [(number, {"series": values[None]}) for (number, _), values in rows.items()]
    for (number, row), answer in zip(sent, served.answers(sent), strict=True):
        np.testing.assert_allclose(answer, served.answers([(number, row)])[0], atol=1e-4)
        model = with_adapter(core, versions[number])
        tokens = served.encode(number, row)
        alone = load_backbone(str(folder), "fp32", "cpu")
        alone.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        with torch.inference_mode():
            features = alone.forward(alone.collate([tokens]))
        features.counts = [2]
        wanted = headed(versions[number], served.artifacts[number], features.pooled(tasks[number].pooling)[0])
        np.testing.assert_allclose(answer, wanted, atol=1e-4)


def known_series(seed: int) -> tuple[Array, Array]:
    """Values and mask [steps] of a series that is shorter than what is seen, with a gap."""
    values, known = np.zeros(STEPS), np.zeros(STEPS, bool)
    values[14:], known[14:] = wave(seed)[0], True
    known[20:23] = False
    return values, known


def test_what_comes_next(tmp_path: Path) -> None:
    backbone = load_backbone(str(make_fracast(tmp_path / "backbone", head=True)), "fp32", "cpu")
    state = load_file(tmp_path / "backbone" / "model.safetensors")
    weights = {name.removeprefix("head."): tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    for seed in range(3):
        values, known = known_series(seed)
        row = {"series": values[None].astype(np.float32), "observed": known[None]}
        with torch.inference_mode():
            features = backbone.forward(backbone.collate([row]))
            found = backbone.forecast(features)[0].numpy()
        wanted = forecast(weights, features.hidden[0].numpy().astype(np.float64), values, known)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-3)


def test_forecasts_among_others(tmp_path: Path) -> None:
    """Horizon and quantiles are each vFM's; rows of one batch may have other channels, and other heads."""
    folder = make_fracast(tmp_path / "backbone", head=True)
    served = Served(tmp_path, folder)
    native = {"kind": "forecast", "pooling": "none", "head": "native"}
    tasks = {
        1: Task(**native, horizon=6, labels=("0.1", "0.5", "0.9")),
        2: Task(**native, horizon=3, labels=("0.5",)),
        3: Task(pooling="mean+levels"),
    }
    for number, task in tasks.items():
        served.put(number, task, served.backbone.model)
    rows = [(number, {"series": wave(number + seed, 1 + seed)[None]}) for seed in range(3) for number in tasks]
    answers = served.answers(rows)
    for (number, row), answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer, served.answers([(number, row)])[0], rtol=1e-4, atol=1e-4)
        if number < 3:
            assert answer.shape == (row["series"].shape[1], tasks[number].horizon, len(tasks[number].labels))
    whole, part = served.answers([(1, rows[0][1]), (2, rows[0][1])])
    np.testing.assert_allclose(part, whole[:, :3, 1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"horizon": 7}, "horizon 7 exceeds the backbone's 6 steps"),
        ({"labels": ("0.2",)}, "quantile 0.2 is none of the backbone's, 0.1, 0.5, 0.9"),
        ({"labels": ("0.9", "0.1")}, "quantiles between 0 and 1, ascending"),
        ({"labels": ("half",)}, "quantiles between 0 and 1, ascending"),
        ({"horizon": None}, "a forecast reads a series, has a 'horizon'"),
        ({"kind": "regression"}, "head 'native' forecasts"),
    ],
)
def test_forecasts_that_are_none(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    served = Served(tmp_path, make_fracast(tmp_path / "backbone", head=True))
    task = {"kind": "forecast", "pooling": "none", "head": "native", "horizon": 3, "labels": ("0.5",), **changes}
    with pytest.raises((Refused, ValueError), match=says):
        served.put(1, Task(**task), None)


def test_a_forecasting_vfm_is_made_and_checked(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    repository = make_fm_repository(tmp_path / "repository", "next", make_fracast(tmp_path / "backbone", head=True))
    result = create_forecast(repository, "demand", fm="next", horizon=4, quantiles=(0.1, 0.9))
    assert (result.artifact.horizon, result.artifact.labels) == (4, ("0.1", "0.9"))
    version = repository / "demand" / "1"
    golden = read_golden(version, version, result.artifact, 2)
    assert golden is not None
    assert golden.arrays[0].shape == (1, 4, 2)
    make_fm_repository(repository, "silent", make_fracast(tmp_path / "silent"))
    with pytest.raises(InvalidInput, match="does not forecast by itself"):
        create_forecast(repository, "other", fm="silent")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"config\.json is none of Fracast's"):
        load_backbone(str(make_fracast(tmp_path / "a", d_model="many")), "fp32", "cpu")
    with pytest.raises(Refused, match="size mismatch"):
        load_backbone(str(make_fracast(tmp_path / "b", d_model=16)), "fp32", "cpu")
