"""PatchTST: every channel of a series by itself, in patches, scaled by its own mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PatchTSTModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, SeriesInput
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused
from fmplex_backend.messages import Tokens


class PatchTSTBackbone(Backbone):
    """A transformers `PatchTSTModel` whose channels share everything and do not see each other."""

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
            input=SeriesInput(config.context_length, positions, self._special),
            **touchable(model),
        )
        self._own: int = config.context_length

    def sequences(self, rows: Sequence[Tokens]) -> list[int] | None:
        """One for each channel."""
        return [len(row["series"]) for row in rows]

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``past_values`` and ``past_observed_mask``, [channels of all rows, context, 1]."""
        values, observed = (np.concatenate([row[name] for row in rows]) for name in ("series", "observed"))
        return {
            "past_values": torch.from_numpy(values).unsqueeze(-1),
            "past_observed_mask": torch.from_numpy(observed).unsqueeze(-1),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the last layer, and the levels that were taken out."""
        scaled, mean, std = self.model.scaler(inputs["past_values"], inputs["past_observed_mask"])  # in fp32
        patches = self.model.patchifier(scaled.to(self._dtype))
        hidden = self.model.encoder(patch_input=patches).last_hidden_state.squeeze(1)
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        levels = torch.cat([mean.flatten(1), std.flatten(1)], -1)
        return Features(hidden, mask, inputs, special=self._special, levels=levels.float())

    @property
    def lengths(self) -> Sequence[int]:
        """Of 1, 4 and 16 channels."""
        return [channels * self.facts.max_length for channels in (1, 4, 16)]

    def sample(self, row: int, length: int) -> Tokens:
        """Channels of noise."""
        channels = length // self.facts.max_length
        values = np.random.default_rng(row).standard_normal((channels, self._own), np.float32)
        return {"series": values, "observed": np.ones(values.shape, bool)}


load = PatchTSTBackbone
"""As `registry` calls it."""
