"""Fracast: one small filter applied at ten time scales, for series (Fracast-0, Apache-2.0; no class of transformers').

Every channel by itself: scaled between its least and its greatest value, then one block of a causal convolution and a
gated layer, ten times with the same weights, at dilations of 1, 2, 4 … 512. A step sees 2,046 steps before it. What
periods a series has is found in its spectrum, and their phases are inputs too, as is how long ago a step was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, SeriesInput
from fmplex_backend.backbones.folder import DTYPES, read_json, ready, refuse_missing, touchable
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused
from fmplex_backend.messages import Tokens

RECENCIES = 5
LEAST_SPAN = 1e-5


class GatedLayer(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] to the same."""
        gate, value = self.up(x).chunk(2, -1)
        result: Tensor = self.down(nn.functional.silu(gate) * value)
        return result


class Block(nn.Module):
    """A causal convolution of each feature in time, a linear layer, and a gated one."""

    def __init__(self, width: int, kernel: int, inner: int) -> None:
        super().__init__()
        self.dw_weight, self.dw_bias = nn.Parameter(torch.zeros(width, 1, kernel)), nn.Parameter(torch.zeros(width))
        self.pw, self.ffn = nn.Linear(width, width), GatedLayer(width, inner)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor, dilation: int) -> Tensor:
        """[n, t, width] to the same."""
        width, kernel = self.dw_weight.shape[0], self.dw_weight.shape[2]
        padded = nn.functional.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0))
        past = nn.functional.conv1d(padded, self.dw_weight, self.dw_bias, dilation=dilation, groups=width)
        x = self.norm1(x + self.pw(past.transpose(1, 2)))
        result: Tensor = self.norm2(x + self.ffn(x))
        return result


class Scale(nn.Module):
    """What the block is told of the scale at which it works: a factor and a shift for each feature."""

    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.frequencies = max(1, dimensions // 2)
        self.to_gb = nn.Linear(2 * self.frequencies, 2 * width)

    def forward(self, x: Tensor, dilation: int) -> Tensor:
        """[n, t, width] to the same."""
        steps = torch.arange(self.frequencies, device=x.device, dtype=torch.float32)
        angles = math.log2(dilation) / 2.0**steps * math.pi
        waves = torch.cat([angles.sin(), angles.cos()]).to(self.to_gb.weight.dtype)
        factor, shift = self.to_gb(waves).chunk(2, -1)
        result: Tensor = x * (1 + factor) + shift
        return result


class Periodic(nn.Module):
    """Phases of a series' periods, as found in its spectrum."""

    def __init__(self, width: int, periods: int, harmonics: int) -> None:
        super().__init__()
        self.periods, self.harmonics = periods, harmonics
        self.proj = nn.Linear(2 * periods * harmonics, width)


class FracastCore(nn.Module):
    """From scaled series to one vector a step."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = int(config["d_model"])
        self.alpha, self.least_period = float(config["periodic_alpha"]), int(config["periodic_min_period"])
        self.dilations = [int(config["dilation_base"]) ** stage for stage in range(int(config["n_stages"]))]
        self.in_proj = nn.Linear(2 + RECENCIES, width)
        self.periodic = Periodic(width, int(config["periodic_topk"]), int(config["periodic_harmonics"]))
        self.block = Block(width, int(config["kernel_size"]), int(width * float(config["ffn_mult"])))
        self.scale = Scale(width, int(config["scale_cond_dim"]))
        self.norm = nn.RMSNorm(width)

    def forward(self, values: Tensor, observed: Tensor) -> Tensor:
        """``values`` fp32 [n, t], 0 where not ``observed`` [n, t] bool; [n, t, width]."""
        dtype = self.in_proj.weight.dtype
        steps = torch.arange(values.shape[1], device=values.device)
        recency = recencies(steps, values.shape[1]).expand(len(values), -1, -1)
        x = self.in_proj(torch.cat([torch.stack([values, observed.float()], -1), recency], -1).to(dtype))
        found = periods_of(values, observed, self.periodic.periods, self.least_period, self.alpha)
        x = x + self.periodic.proj(phases(steps, found, self.periodic.harmonics).to(dtype))
        for dilation in self.dilations:
            x = self.block(self.scale(x, dilation), dilation)
        result: Tensor = self.norm(x)
        return result


def recencies(steps: Tensor, length: int) -> Tensor:
    """fp32 [t, 5]: how long before (or behind) the last of ``length`` steps each of ``steps`` is, on several scales."""
    away = (steps.float() - (length - 1)) / length
    far = away.abs()
    logarithm = away.sign() * far.log1p() / math.log(2.0)
    return torch.stack([away, logarithm, *((-rate * far).exp() for rate in (0.5, 2.0, 8.0))], -1)


def phases(steps: Tensor, periods: Tensor, harmonics: int) -> Tensor:
    """fp32 [n, t, 2 · periods · harmonics]: sine and cosine of each step in each of ``periods`` [n, k], 0 for none."""
    there = (periods > 0).float()[:, None, :, None]
    turns = 2 * math.pi * steps.float()[None, :, None] / periods.clamp(min=1).float()[:, None, :]
    angles = turns.unsqueeze(-1) * torch.arange(1, harmonics + 1, device=steps.device)
    return torch.stack([angles.sin() * there, angles.cos() * there], -1).flatten(2)


def periods_of(values: Tensor, observed: Tensor, most: int, least_period: int, alpha: float) -> Tensor:
    """Periods that the spectrum of each series shows beyond chance: int64 [n, most], the strongest first, 0 for none.

    A peak counts where its part of the whole power is beyond what white noise has once in 1/``alpha`` series.
    """
    mean = (values * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    filled = torch.where(observed, values, mean)
    length = filled.shape[1]
    size = 1 << math.ceil(math.log2(max(2, length)))
    power = torch.fft.rfft(filled - filled.mean(1, keepdim=True), n=size).abs().square()[:, 1:]
    part = power / power.sum(1, keepdim=True).clamp(min=1e-12)
    bins = part.shape[1]
    peak = torch.zeros_like(part, dtype=torch.bool)
    peak[:, 1:-1] = (part[:, 1:-1] > part[:, :-2]) & (part[:, 1:-1] > part[:, 2:])
    longest = max(2, length // 2)
    low, high = max(0, size // longest - 1), min(bins - 1, max(0, size // max(2, least_period) - 1))
    peak[:, :low], peak[:, high + 1 :] = False, False
    threshold = math.log(bins / alpha) / bins
    scored = torch.where(peak & (part >= threshold), part, -torch.inf)
    scores, places = scored.topk(min(most, bins), 1)
    found = torch.round(size / (places + 1).float()).long()
    return torch.where(scores.isfinite(), found, torch.zeros_like(found))


class FracastBackbone(Backbone):
    """Fracast's encoder; its own forecasting head is not part of it."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        config = read_json(folder, "config.json", spec)
        try:
            model, self._context = FracastCore(config), int(config["context_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"backbone {spec!r}: config.json is none of Fracast's: {error!r}") from None
        state = {
            name.removeprefix("core."): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
            if name.startswith("core.")
        }
        refuse_missing(model.state_dict().keys() - state.keys(), spec)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise Refused(f"backbone {spec!r}: {error}") from None
        self.model = ready(model.to(DTYPES[dtype]), device)
        self.device = device
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type="fracast",
            prefix="core",
            hidden_size=model.norm.weight.numel(),
            max_length=self._context,
            input=SeriesInput(self._context, self._context, 0),
            **touchable(model),
        )

    def sequences(self, rows: Sequence[Tokens]) -> list[int] | None:
        """One for each channel."""
        return [len(row["series"]) for row in rows]

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``values`` and ``observed``, [channels of all rows, context]."""
        values, observed = (np.concatenate([row[name] for row in rows]) for name in ("series", "observed"))
        return {"values": torch.from_numpy(values), "observed": torch.from_numpy(observed)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Vectors of the steps; those without a value are masked."""
        values, observed = inputs["values"], inputs["observed"]
        least = values.masked_fill(~observed, torch.inf).amin(1, keepdim=True)
        span = (values.masked_fill(~observed, -torch.inf).amax(1, keepdim=True) - least).clamp(min=LEAST_SPAN)
        hidden = self.model(torch.where(observed, (values - least) / span, 0), observed)
        count = observed.sum(1, keepdim=True)
        mean = (values * observed).sum(1, keepdim=True) / count
        spread = (((values - mean) ** 2 * observed).sum(1, keepdim=True) / count).sqrt()
        return Features(hidden, observed.to(torch.int64), inputs, levels=torch.cat([mean, spread], -1))

    @property
    def lengths(self) -> Sequence[int]:
        """Of 1, 2 and 4 channels."""
        return [channels * self._context for channels in (1, 2, 4)]

    def sample(self, row: int, length: int) -> Tokens:
        """Channels of noise."""
        values = np.random.default_rng(row).standard_normal((length // self._context, self._context), np.float32)
        return {"series": values, "observed": np.ones(values.shape, bool)}


load = FracastBackbone
"""As `registry` calls it."""
