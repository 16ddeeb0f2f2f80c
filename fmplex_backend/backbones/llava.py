"""LLaVA: a language model that sees. Its last position is read: what it makes of an image and a text together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import LlavaModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, ImageTextInput
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.images import Colours, a_picture, image_input
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.backbones.texts import a_text, fast_tokenizer, padded, text_input
from fmplex_backend.messages import Tokens

MEASURED_TOKENS = (8, 32)


class LlavaBackbone(Backbone):
    """An image's patches, as the language model reads them, and then the text's tokens."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        self.model, _ = load_model(LlavaModel, folder, spec, dtype, device)
        model = self.model
        self.device, self._dtype = device, DTYPES[dtype]
        config = model.config
        self._colours = Colours(folder, spec)
        # What LLaVA hands on of the picture is its patches, with the class token only where it says "full".
        special = int(config.vision_feature_select_strategy == "full")
        self._image = replace(image_input(config.vision_config, self._colours.told, special), any_size=False)
        text = text_input(fast_tokenizer(folder, spec), spec)
        self._pad, self._picture = text.pad_token_id, int(config.image_token_index)
        self._patches = self._image.positions(self._image.size)
        room = config.text_config.max_position_embeddings - self._patches
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type=config.model_type,
            prefix=model.base_model_prefix,
            hidden_size=config.text_config.hidden_size,
            max_length=config.text_config.max_position_embeddings,
            input=ImageTextInput(self._image, text, room, both=True),
            **touchable(model),
        )

    def shape(self, row: Tokens) -> tuple[int, ...]:
        """By the image's size."""
        return (len(row["pixels"]),)

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``pixel_values`` [n, 3, size, size]; ``input_ids``, the image's places first, ``attention_mask`` [n, t]."""
        places = self._image.positions(len(rows[0]["pixels"]))
        picture = np.full(places, self._picture, np.int32)
        ids, mask = padded([np.concatenate([picture, row["input_ids"]]) for row in rows], self._pad)
        values = self._colours.pixel_values([row["pixels"] for row in rows])
        return {"pixel_values": values, "input_ids": ids, "attention_mask": mask}

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states of the language model."""
        output = self.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"].to(self._dtype),
            use_cache=False,
        )
        return Features(output.last_hidden_state, inputs["attention_mask"], inputs)

    @property
    def lengths(self) -> Sequence[int]:
        """Of the backbone's own images with short texts."""
        return [self._patches + tokens for tokens in MEASURED_TOKENS]

    def sample(self, row: int, length: int) -> Tokens:
        """A picture and a text."""
        tokens = a_text(row, length - self._patches, self._pad)
        return {"pixels": a_picture(row, self._image.size), "input_ids": tokens}


load = LlavaBackbone
"""As `registry` calls it."""
