"""Vision transformers through transformers' ``AutoModel``: DINOv2 (with registers too), ViT, CLIP's vision half."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import BackboneFacts, ImageInput
from fmplex_backend.backbones.folder import DTYPES, read_json, ready, refuse_missing, touchable
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.errors import Refused
from fmplex_backend.messages import Tokens

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours: what there is without a ``preprocessor_config.json``."""
_BICUBIC = 3
LARGEST = 1024
"""Height and width of the largest image, where the backbone can be given other sizes than its own."""


class VisionBackbone(Backbone):
    """A transformers model that maps pixels to one hidden state a patch, a class token in front."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        self.model, info = AutoModel.from_pretrained(
            folder, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
        ready(self.model, device)
        self.device = device
        refuse_missing(info["missing_keys"], spec, optional="pooler.")
        if info["missing_keys"]:
            self.model.pooler = None
        self._dtype = DTYPES[dtype]
        # DINOv2 fits its positions to any size unasked; the others do when told.
        self._asked = {} if self.model.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        colours = _preprocessing(folder, spec)
        self._scale = colours.get("rescale_factor", 1 / 255) if colours.get("do_rescale", True) else 1.0
        normal = colours.get("do_normalize", True)
        mean, std = colours.get("image_mean", _MEAN), colours.get("image_std", _STD)
        self._mean = torch.tensor(mean if normal else (0.0,) * 3).view(3, 1, 1)
        self._std = torch.tensor(std if normal else (1.0,) * 3).view(3, 1, 1)
        own = _input(self.model.config, colours)
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
        pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows])).permute(0, 3, 1, 2)
        return {"pixel_values": (pixels.float() * self._scale - self._mean) / self._std}

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
        return {"pixels": np.random.default_rng(row).integers(0, 256, (side, side, 3), np.uint8)}


load = VisionBackbone
"""As `registry` calls it."""


def _preprocessing(folder: Path, spec: str) -> dict[str, Any]:
    if not (folder / "preprocessor_config.json").is_file():
        return {}
    return read_json(folder, "preprocessor_config.json", spec)


def _input(config: Any, preprocessing: Mapping[str, Any]) -> ImageInput:
    """Raises `Refused` for preprocessing that is none of a vision transformer's."""
    cropped, resized = preprocessing.get("crop_size"), preprocessing.get("size", {})
    crop = bool(preprocessing.get("do_center_crop", False))
    size = _side(cropped) if crop else _side(resized)
    # DINOv2's own figure is that of its position table (518), what it is used at is what its preprocessing says.
    size = size or int(config.image_size)
    patch = int(config.patch_size)
    if size % patch:
        raise Refused(f"images of {size} are no multiple of patches of {patch}")
    return ImageInput(
        size=size,
        patch=patch,
        special=1 + int(getattr(config, "num_register_tokens", 0)),
        crop=crop,
        resize=int(resized.get("shortest_edge", size)) if isinstance(resized, dict) else int(resized),
        resample=int(preprocessing.get("resample", _BICUBIC)),
    )


def _side(size: Any) -> int:
    """Of a square, 0 where nothing is said. Raises `Refused` where it is none."""
    if isinstance(size, (int, float)):
        return int(size)
    if not size:
        return 0
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    height, width = int(size["height"]), int(size["width"])
    if height != width:
        raise Refused(f"images of {height} x {width}: only squares are served")
    return height
