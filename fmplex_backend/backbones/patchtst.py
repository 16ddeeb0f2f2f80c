"""PatchTST: every channel of a series by itself, in patches, scaled by its own mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PatchTSTModel

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import BackboneFacts, SeriesInput
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.series import SeriesBackbone
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused


class PatchTSTBackbone(SeriesBackbone):
    """A transformers `PatchTSTModel` whose channels share everything and do not see each other."""

    usual_channels: Sequence[int] = (1, 4, 16)

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        self.model, _ = load_model(PatchTSTModel, folder, spec, dtype, device)
        self.device, model = device, self.model
        config = model.config
        for key, wanted in (("channel_attention", False), ("share_embedding", True)):
            if getattr(config, key) is not wanted:
                raise Refused(f"backbone {spec!r}: {key} is {not wanted}; served are channels that share one backbone")
        model.do_mask_input, model.masking = False, torch.nn.Identity()  # for pretraining only
        self._dtype = DTYPES[dtype]
        self._special = int(config.use_cls_token)
        positions: int = model.patchifier.num_patches + self._special
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type=config.model_type,
            prefix=model.base_model_prefix,
            hidden_size=config.d_model,
            max_length=positions,
            input=SeriesInput(config.context_length, positions, self._special, patch=_patch(config)),
            **touchable(model),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the last layer, and the levels that were taken out."""
        scaled, mean, std = self.model.scaler(inputs["values"].unsqueeze(-1), inputs["observed"].unsqueeze(-1))  # fp32
        patches = self.model.patchifier(scaled.to(self._dtype))
        hidden = self.model.encoder(patch_input=patches).last_hidden_state.squeeze(1)
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        levels = torch.cat([mean.flatten(1), std.flatten(1)], -1)
        return Features(hidden, mask, inputs, special=self._special, levels=levels.float())


def _patch(config: Any) -> int:
    """Steps of a patch, 0 where patches overlap or leave steps out."""
    whole = config.patch_length == config.patch_stride and config.context_length % config.patch_length == 0
    return int(config.patch_length) if whole else 0


load = PatchTSTBackbone
"""As `registry` calls it."""
