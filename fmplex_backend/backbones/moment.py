"""MOMENT (Goswami et al. 2024, arXiv 2402.03885): every channel by itself, in patches, through the encoder of a T5.

Checkpoints are those of ``AutonLab/MOMENT-1-*``, whose ``config.json`` says ``model_name`` where others have a
``model_type``. What they have for a head, which restores patches, is left where it is. A patch counts where each of its
steps has a value; a channel without such a patch has no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import BackboneFacts, SeriesInput
from fmplex_backend.backbones.folder import DTYPES, filled, read_json, ready, touchable
from fmplex_backend.backbones.series import SeriesBackbone, levels_of
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused

EPSILON = 1e-5
"""Added to a standard deviation before it divides."""
WANTED = {"transformer_type": "encoder_only", "revin_affine": False, "add_positional_embedding": True}
"""What configurations say that can be served, or leave out."""
SPARE = ("head.", "patch_embedding.position_embedding.", "encoder.embed_tokens.")
"""Of a checkpoint's weights: not needed, or computed."""


class MomentBackbone(SeriesBackbone):
    """MOMENT's encoder."""

    usual_channels: Sequence[int] = (1, 2, 4)

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        config = read_json(folder, "config.json", spec)
        try:
            context, self._patch = int(config["seq_len"]), int(config["patch_len"])
            t5 = T5Config.from_dict(config["t5_config"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"backbone {spec!r}: config.json is none of MOMENT's: {error!r}") from None
        _check(config, context, self._patch, spec)
        with torch.device("meta"):
            core = _Core(t5, self._patch, bool(config.get("value_embedding_bias", False)))
        weights = load_file(folder / "model.safetensors")
        filled(core, {name: tensor for name, tensor in weights.items() if not name.startswith(SPARE)}, spec)
        self.device, self._dtype = device, DTYPES[dtype]
        self.model = ready(core.to(self._dtype), device)
        positions = context // self._patch
        self._places = _places(positions, t5.d_model).to(device, self._dtype)
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type="moment",
            prefix="",
            hidden_size=t5.d_model,
            max_length=positions,
            input=SeriesInput(context, positions, 0, patch=self._patch),
            **touchable(core),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states behind the last norm; patches that lack a value are masked."""
        levels = levels_of(inputs["values"], inputs["observed"])
        scaled = (inputs["values"] - levels[:, :1]) / (levels[:, 1:] + EPSILON)
        scaled = scaled.view(len(scaled), -1, self._patch)
        whole = inputs["observed"].view(len(scaled), -1, self._patch).all(-1)
        embedding: Any = self.model.patch_embedding
        made = embedding.value_embedding(scaled.to(self._dtype))
        made = torch.where(whole.unsqueeze(-1), made, embedding.mask_embedding) + self._places
        mask = whole.to(torch.int64)
        hidden = self.model.encoder(inputs_embeds=made, attention_mask=mask).last_hidden_state
        hidden = hidden.masked_fill(~whole.any(1)[:, None, None], torch.nan)
        return Features(hidden, mask, inputs, levels=levels)


class _Core(nn.Module):
    """The modules under MOMENT's own names, by which adapters know them."""

    def __init__(self, t5: T5Config, patch: int, bias: bool) -> None:
        super().__init__()
        self.patch_embedding = nn.Module()
        self.patch_embedding.value_embedding = nn.Linear(patch, t5.d_model, bias=bias)
        self.patch_embedding.mask_embedding = nn.Parameter(torch.zeros(t5.d_model))
        t5.is_decoder = t5.use_cache = t5.is_encoder_decoder = False
        self.encoder = T5Stack(t5)
        del self.encoder.embed_tokens  # of words, which there are none of


def _check(config: Mapping[str, Any], context: int, patch: int, spec: str) -> None:
    wanted = {**WANTED, "patch_stride_len": patch}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise Refused(f"backbone {spec!r}: {key} is {config[key]!r}; served is {value!r}")
    if patch < 1 or context < patch or context % patch:
        raise Refused(f"backbone {spec!r}: seq_len {context} is not a multiple of patch_len {patch}")


def _places(positions: int, width: int) -> Tensor:
    """Sines and cosines of the positions, [positions, width] (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(positions).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


load = MomentBackbone
"""As `registry` calls it."""
