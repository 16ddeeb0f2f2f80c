"""Vision transformers through transformers' ``AutoModel``: DINOv2 (with registers too), ViT, CLIP's vision half."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.images import LARGEST, Colours, a_picture, image_input
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.messages import Tokens


class VisionBackbone(Backbone):
    """A transformers model that maps pixels to one hidden state a patch, a class token in front."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        self.model, whole = load_model(AutoModel, folder, spec, dtype, device, optional="pooler.")
        self.device = device
        if not whole:
            self.model.pooler = None
        self._dtype = DTYPES[dtype]
        # DINOv2 fits its positions to any size unasked; the others do when told.
        self._asked = {} if self.model.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        self._colours = Colours(folder, spec)
        registers = int(getattr(self.model.config, "num_register_tokens", 0))
        own = image_input(self.model.config, self._colours.told, 1 + registers)
        model_type = self.model.config.model_type
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type=model_type,
            prefix="vision_model" if model_type == "clip_vision_model" else self.model.base_model_prefix,
            hidden_size=self.model.config.hidden_size,
            max_length=own.positions(max(LARGEST // own.patch * own.patch, own.size)),
            input=own,
            **touchable(self.model),
        )
        self._own = own

    def shape(self, row: Tokens) -> tuple[int, ...]:
        """By the image's size."""
        return (len(row["pixels"]),)

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``pixel_values`` [n, 3, size, size], colours scaled as the backbone wants them."""
        return {"pixel_values": self._colours.pixel_values([row["pixels"] for row in rows])}

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the last layer."""
        output = self.model(inputs["pixel_values"].to(self._dtype), **self._asked)
        hidden = output.last_hidden_state
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        return Features(hidden, mask, inputs, output.pooler_output, self._own.special)

    @property
    def lengths(self) -> Sequence[int]:
        """Of squares of few patches, and of the backbone's own size."""
        own = self._own.size // self._own.patch
        return [self._own.positions(side * self._own.patch) for side in sorted({min(2, own), min(5, own), own})]

    def sample(self, row: int, length: int) -> Tokens:
        """A square with a pattern of its own."""
        side = math.isqrt(length - self._own.special) * self._own.patch
        return {"pixels": a_picture(row, side)}


load = VisionBackbone
"""As `registry` calls it."""
