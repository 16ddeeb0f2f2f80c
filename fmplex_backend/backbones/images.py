"""What plug-ins that see do with pixels: how a backbone wants them, and scaling their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.backbones.folder import read_json
from fmplex_backend.errors import Refused

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours: what there is without a ``preprocessor_config.json``."""
_BICUBIC = 3
LARGEST = 1024
"""Height and width of the largest image, where the backbone can be given other sizes than its own."""


class Colours:
    """Scales 8-bit colours as a backbone's ``preprocessor_config.json`` says."""

    def __init__(self, folder: Path, spec: str) -> None:
        """Raises `Refused` where there is such a file and it cannot be read."""
        there = (folder / "preprocessor_config.json").is_file()
        self.told = read_json(folder, "preprocessor_config.json", spec) if there else {}
        self._scale = self.told.get("rescale_factor", 1 / 255) if self.told.get("do_rescale", True) else 1.0
        normal = self.told.get("do_normalize", True)
        mean, std = self.told.get("image_mean", _MEAN), self.told.get("image_std", _STD)
        self._mean = torch.tensor(mean if normal else (0.0,) * 3).view(3, 1, 1)
        self._std = torch.tensor(std if normal else (1.0,) * 3).view(3, 1, 1)

    def pixel_values(self, images: Sequence[Array]) -> Tensor:
        """fp32 [n, 3, size, size] of uint8 [size, size, 3] each."""
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return (pixels.float() * self._scale - self._mean) / self._std


def image_input(config: Any, preprocessing: Mapping[str, Any], special: int) -> ImageInput:
    """Of a vision transformer with this configuration. Raises `Refused` for preprocessing that is none of one's."""
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
        special=special,
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


def a_picture(row: int, side: int) -> Array:
    """uint8 [side, side, 3] with a pattern of its own for every number ``row``."""
    return np.random.default_rng(row).integers(0, 256, (side, side, 3), np.uint8)
