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

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import BackboneFacts, SeriesInput
from fmplex_backend.backbones.folder import DTYPES, filled, read_json, ready, touchable
from fmplex_backend.backbones.series import SeriesBackbone, levels_of
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused

RECENCIES = 5
LEAST_SPAN = 1e-5


class Norm(nn.RMSNorm):
    """In its weights' precision, where autocast computes everything else in a lower one."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] to the same."""
        return super().forward(x.to(self.weight.dtype))


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
        self.norm1, self.norm2 = Norm(width), Norm(width)

    def forward(self, x: Tensor, dilation: int) -> Tensor:
        """[n, t, width] to the same."""
        x = self.norm1(x + self.pw(_past(x, self.dw_weight, self.dw_bias, dilation)))
        result: Tensor = self.norm2(x + self.ffn(x))
        return result


def _past(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """A causal convolution of each feature of [n, t, width] with ``weight`` [width, 1, kernel]: the same shape."""
    width, _, kernel = weight.shape
    padded = nn.functional.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0))
    return nn.functional.conv1d(padded, weight, bias, dilation=dilation, groups=width).transpose(1, 2)


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
        self.norm = Norm(width)

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


class Smoothing(nn.Module):
    """A causal convolution of each feature over the steps to come."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.dw_weight, self.dw_bias = nn.Parameter(torch.zeros(width, 1, kernel)), nn.Parameter(torch.zeros(width))
        self.norm = Norm(width)

    def forward(self, x: Tensor, dilation: int) -> Tensor:
        """[n, horizon, width] to the same."""
        result: Tensor = self.norm(x + _past(x, self.dw_weight, self.dw_bias, dilation))
        return result


class Continued(nn.Module):
    """The series' last steps and what its season would bring, through a block like the encoder's."""

    def __init__(self, config: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(1 + RECENCIES, width), nn.Linear(width, width)
        self.block = Block(width, int(config["kernel_size"]), int(width * float(config["ffn_mult"])))
        base = int(config["dilation_base"])
        self.dilations = [base**layer for layer in range(int(config.get("head_future_conv_layers", 6)))]
        self.seed = int(config.get("head_future_conv_seed", 128))

    def forward(self, hidden: Tensor, season: Tensor, recency: Tensor) -> Tensor:
        """``hidden`` [n, t, width], ``season`` [n, horizon], ``recency`` [horizon, 5]; [n, horizon, width]."""
        ahead = torch.cat([season.unsqueeze(-1), recency.expand(len(season), -1, -1)], -1)
        x = torch.cat([hidden[:, -self.seed :], self.in_proj(ahead.to(hidden.dtype))], 1)
        for dilation in self.dilations:
            x = self.block(x, dilation)
        result: Tensor = self.out_proj(x[:, -season.shape[1] :])
        return result


class QuantileHead(nn.Module):
    """From a series' vectors to quantiles of the steps to come."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if config.get("head_seasonal_fill_mode", "phase_mean") != "phase_mean" or not config["head_future_conv"]:
            raise ValueError("another kind of forecasting head")
        width, self.horizon = int(config["d_model"]), int(config["horizon"])
        self.periods = int(config["periodic_topk"]), int(config["periodic_min_period"]), float(config["periodic_alpha"])
        self.bins = int(config.get("head_phase_bins", 16))
        self.summary_proj = nn.Linear(2 * width + RECENCIES, width)
        self.queries = nn.Parameter(torch.zeros(self.horizon, width))
        layers = range(int(config.get("head_layers", 1)))
        self.decoder_ffns = nn.ModuleList(GatedLayer(width, int(config["head_d_ff"])) for _ in layers)
        self.decoder_norms = nn.ModuleList(Norm(width) for _ in layers)
        kernel = int(config.get("head_fc_kernel", 3))
        self.fc_blocks = nn.ModuleList(Smoothing(width, kernel) for _ in range(int(config.get("head_fc_layers", 2))))
        self.future_conv = Continued(config, width)
        self.out_proj = nn.Linear(width, len(config["quantiles"]))

    def forward(self, hidden: Tensor, values: Tensor, observed: Tensor) -> Tensor:
        """``hidden`` [n, t, width] of scaled ``values`` [n, t], 0 where not ``observed``; [n, horizon, quantiles]."""
        length = values.shape[1]
        steps = torch.arange(length, length + self.horizon, device=values.device)
        recency = recencies(steps, length)
        summary = torch.cat([hidden.mean(1), hidden[:, -1]], -1).unsqueeze(1).expand(-1, self.horizon, -1)
        known = torch.cat([recency.expand(len(values), -1, -1).to(hidden.dtype), summary], -1)
        x = self.summary_proj(known) + self.queries
        for layer, norm in zip(self.decoder_ffns, self.decoder_norms, strict=True):
            x = norm(x + layer(x))
        for power, block in enumerate(self.fc_blocks):
            x = block(x, 2**power)
        period = periods_of(values, observed, *self.periods)[:, 0]
        x = x + self.future_conv(hidden, seasonal(values, observed, steps, period, self.bins), recency)
        result: Tensor = self.out_proj(x)
        return result


def seasonal(values: Tensor, observed: Tensor, steps: Tensor, period: Tensor, bins: int) -> Tensor:
    """What a series had on average at the phase of each of ``steps`` [h]: [n, h].

    ``period`` int64 [n], 0 for none, which is 1: then, and where a phase has no value, the mean of all.
    """
    turn = period.clamp(min=1).float()[:, None]

    def phase(places: Tensor) -> Tensor:
        return ((places.float()[None] % turn) / turn * bins).long().clamp(max=bins - 1)

    one_hot = nn.functional.one_hot(phase(torch.arange(values.shape[1], device=values.device)), bins)
    weights = one_hot * observed.unsqueeze(-1)
    counts, sums = weights.sum(1), (weights * values.unsqueeze(-1)).sum(1)
    mean = (values * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), mean)
    return means.gather(1, phase(steps))


class FracastBackbone(SeriesBackbone):
    """Fracast's encoder, and its forecasting head for vFMs that ask for it."""

    usual_channels: Sequence[int] = (1, 2, 4)

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        config = read_json(folder, "config.json", spec)
        try:
            model, self._context = FracastCore(config), int(config["context_length"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"backbone {spec!r}: config.json is none of Fracast's: {error!r}") from None
        weights = load_file(folder / "model.safetensors")
        self.model = ready(filled(model, _under("core.", weights), spec).to(DTYPES[dtype]), device)
        self._head = None
        if "head_kind" in config:
            self._head = ready(filled(QuantileHead(config), _under("head.", weights), spec).to(DTYPES[dtype]), device)
        self.device = device
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type="fracast",
            prefix="core",
            hidden_size=model.norm.weight.numel(),
            max_length=self._context,
            input=SeriesInput(
                self._context,
                self._context,
                0,
                self._head.horizon if self._head else 0,
                tuple(config["quantiles"]) if self._head else (),
                patch=1,
            ),
            **touchable(model, shared={"scale.to_gb"}),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Vectors of the steps; those without a value are masked."""
        values, observed = inputs["values"], inputs["observed"]
        scaled, _, _ = _scaled(values, observed)
        hidden = self.model(scaled, observed)
        return Features(hidden, observed.to(torch.int64), inputs, levels=levels_of(values, observed))

    def forecast(self, features: Features) -> Tensor:
        """See `Backbone`."""
        if self._head is None:
            return super().forecast(features)
        observed = features.inputs["observed"]
        scaled, least, span = _scaled(features.inputs["values"], observed)
        found: Tensor = self._head(features.hidden, scaled, observed).float()
        return found * span.unsqueeze(-1) + least.unsqueeze(-1)


def _scaled(values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Between 0 and 1, 0 where not ``observed``; and the least value and the span of each, [n, 1]."""
    least = values.masked_fill(~observed, torch.inf).amin(1, keepdim=True)
    span = (values.masked_fill(~observed, -torch.inf).amax(1, keepdim=True) - least).clamp(min=LEAST_SPAN)
    return torch.where(observed, (values - least) / span, 0), least, span


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


load = FracastBackbone
"""As `registry` calls it."""
