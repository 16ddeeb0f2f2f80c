"""Fracast against its formulas written out step by step in numpy, alone and in mixed batches with adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from support.modal import Served, Task, headed, with_adapter
from support.small import series

from fmplex_backend.backbones.fracast import FracastCore, periods_of
from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.errors import Refused

STEPS, WIDTH, KERNEL, STAGES, PERIODS = 64, 8, 3, 4, 2
CONFIG = {
    "model_type": "fracast", "context_length": STEPS, "d_model": WIDTH, "n_stages": STAGES, "dilation_base": 2,
    "kernel_size": KERNEL, "ffn_mult": 1.5, "scale_cond_dim": 4, "periodic_topk": PERIODS, "periodic_harmonics": 2,
    "periodic_alpha": 0.05, "periodic_min_period": 2,
}  # fmt: skip
Array = NDArray[Any]


def make_fracast(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        core = FracastCore(CONFIG)
        for parameter in core.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {f"core.{name}": tensor.detach() for name, tensor in core.state_dict().items()}
    save_file({**weights, "head.queries": torch.zeros(2)}, folder / "model.safetensors")
    return folder


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
        past = np.zeros_like(x)
        for step in range(STEPS):
            for tap in range(KERNEL):
                source = step - (KERNEL - 1 - tap) * 2**stage
                if source >= 0:
                    past[step] += x[source] * weights["block.dw_weight"][:, 0, tap]
            past[step] += weights["block.dw_bias"]
        x = norm(x + past @ weights["block.pw.weight"].T + weights["block.pw.bias"], weights["block.norm1.weight"])
        gate, value = np.split(x @ weights["block.ffn.up.weight"].T + weights["block.ffn.up.bias"], 2, -1)
        inner = gate / (1 + np.exp(-gate)) * value
        down = inner @ weights["block.ffn.down.weight"].T + weights["block.ffn.down.bias"]
        x = norm(x + down, weights["block.norm2.weight"])
    return norm(x, weights["norm.weight"])


def wave(seed: int, channels: int = 1, steps: int = 50) -> Array:
    at = np.arange(steps)
    return (series(seed, channels, steps) / 20 + 3 * np.sin(2 * np.pi * at / 8)).astype(np.float32)


def test_what_a_step_is(tmp_path: Path) -> None:
    backbone = load_backbone(str(make_fracast(tmp_path / "backbone")), "fp32", "cpu")
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in backbone.model.state_dict().items()}
    for seed in range(3):
        values, known = np.zeros(STEPS), np.zeros(STEPS, bool)
        values[14:], known[14:] = wave(seed)[0], True
        known[20:23] = False
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


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"config\.json is none of Fracast's"):
        load_backbone(str(make_fracast(tmp_path / "a", d_model="many")), "fp32", "cpu")
    with pytest.raises(Refused, match="size mismatch"):
        load_backbone(str(make_fracast(tmp_path / "b", d_model=16)), "fp32", "cpu")
