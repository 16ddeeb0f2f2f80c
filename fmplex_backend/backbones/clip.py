"""CLIP: an image and a text as two vectors of one space, or one of them.

A row's positions are these vectors, of unit length: the image's first, then the text's. So a head on ``cls+last`` reads
both, ``similarity`` is their cosine, and the vectors of labels' texts are the prototypes of zero-shot classification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, ImageTextInput
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.images import LARGEST, Colours, a_picture, image_input
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.backbones.texts import a_text, fast_tokenizer, padded, text_input
from fmplex_backend.messages import Tokens

MEASURED_TOKENS = 8


class ClipBackbone(Backbone):
    """Both halves of a CLIP model."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        self.model, _ = load_model(CLIPModel, folder, spec, dtype, device)
        model = self.model
        self.device, self._dtype = device, DTYPES[dtype]
        self._colours = Colours(folder, spec)
        image = image_input(model.config.vision_config, self._colours.told, 1)
        text = text_input(fast_tokenizer(folder, spec), spec)
        self._image, self._pad = image, text.pad_token_id
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type=model.config.model_type,
            prefix=model.base_model_prefix,
            hidden_size=model.config.projection_dim,
            max_length=image.positions(max(LARGEST // image.patch * image.patch, image.size)),
            input=ImageTextInput(image, text, model.config.text_config.max_position_embeddings, both=False),
            **touchable(model),
        )

    def shape(self, row: Tokens) -> tuple[int, ...]:
        """By the image's size, 0 without one, and whether there is a text."""
        return (len(row.get("pixels", ())), int("input_ids" in row))

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``pixel_values`` [n, 3, size, size]; ``input_ids``, ``attention_mask`` [n, t]: as far as there are any."""
        found: dict[str, Tensor] = {}
        if "pixels" in rows[0]:
            found["pixel_values"] = self._colours.pixel_values([row["pixels"] for row in rows])
        if "input_ids" in rows[0]:
            found["input_ids"], found["attention_mask"] = padded([row["input_ids"] for row in rows], self._pad)
        return found

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """One or two vectors a row."""
        found = []
        if "pixel_values" in inputs:
            seen = self.model.vision_model(inputs["pixel_values"].to(self._dtype), interpolate_pos_encoding=True)
            found.append(self.model.visual_projection(seen.pooler_output))
        if "input_ids" in inputs:
            read = self.model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            found.append(self.model.text_projection(read.pooler_output))
        hidden = nn.functional.normalize(torch.stack(found, 1), dim=-1)
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        return Features(hidden, mask, inputs)

    @property
    def lengths(self) -> Sequence[int]:
        """Of small images and of the backbone's own, each with a text."""
        sides = sorted({2 * self._image.patch, self._image.size})
        return [self._image.positions(side) + MEASURED_TOKENS for side in sides]

    def sample(self, row: int, length: int) -> Tokens:
        """A picture and a text."""
        side = round((length - MEASURED_TOKENS - self._image.special) ** 0.5) * self._image.patch
        return {"pixels": a_picture(row, side), "input_ids": a_text(row, MEASURED_TOKENS, self._pad)}


load = ClipBackbone
"""As `registry` calls it."""
