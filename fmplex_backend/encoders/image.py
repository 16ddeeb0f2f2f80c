"""The input side of image vFMs: a file, or pixels, → the square that the backbone sees. No torch.

1. A file is known by what it holds, not by its name: JPEG, PNG, WebP, GIF (its first picture) and BMP. Its header tells
   its size before anything is decoded.
2. It is turned as its camera says (EXIF), and what is transparent becomes white.
3. Resizing and cropping are those of the backbone's own preprocessing in transformers, by Pillow; the colours are
   scaled by the engine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.encoders.base import EncodedRow, Encoder, check_tensors
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import EncoderSpec, ImageSpec

MOST_UNEVEN = 200
"""A longer side is scaled to as many times the size that the backbone sees."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
Image.MAX_IMAGE_PIXELS = None  # `ImageSpec.max_pixels` is looked at before anything is decoded


class ImageEncoder(Encoder):
    """Decodes and resizes for every vFM of one backbone."""

    def __init__(self, own: ImageInput) -> None:
        self._own = own

    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """See `Encoder`; a row is ``pixels`` uint8 [size, size, 3]."""
        assert isinstance(spec, ImageSpec)
        count = check_tensors(spec, inputs)
        if spec.pixels:
            images = (_of_pixels(inputs["pixels"][row], spec, row) for row in range(count))
        else:
            images = (_of_file(inputs["image"][row, 0], spec, row) for row in range(count))
        size = spec.size or self._own.size
        positions = self._own.positions(size)
        return [EncodedRow({"pixels": self._square(image, spec, size)}, positions) for image in images]

    def _square(self, image: Any, spec: ImageSpec, size: int) -> Array:
        """[size, size, 3] uint8."""
        crop = self._own.crop if spec.crop is None else spec.crop
        resample = Image.Resampling(self._own.resample)
        if not crop:
            return np.asarray(image.resize((size, size), resample))
        shorter = max(size, round(self._own.resize * size / self._own.size))
        width, height = image.size
        wide = shorter if width <= height else int(shorter * width / height)
        high = shorter if height <= width else int(shorter * height / width)
        image = image.resize((wide, high), resample)
        left, top = (wide - size) // 2, (high - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))


def _of_pixels(pixels: Array, spec: ImageSpec, row: int) -> Any:
    height, width, _ = pixels.shape
    _check_size(width, height, spec, f"row {row}: pixels")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _of_file(value: object, spec: ImageSpec, row: int) -> Any:
    """An RGB image. Raises `InvalidInput`."""
    where = f"row {row}: image"
    data = value if isinstance(value, bytes) else str(value).encode()
    if not data:
        raise InvalidInput(f"{where} is empty")
    if len(data) > spec.max_bytes:
        raise InvalidInput(f"{where} has {len(data)} bytes, the limit is {spec.max_bytes} (encoder.max_bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, spec, where)
            return _on_white(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise InvalidInput(f"{where} is no image in one of {', '.join(FORMATS)}; it begins with {data[:8]!r}") from None
    except InvalidInput:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise InvalidInput(f"{where} cannot be decoded: {error or type(error).__name__}") from None


def _check_size(width: int, height: int, spec: ImageSpec, where: str) -> None:
    if not width or not height:
        raise InvalidInput(f"{where} is {width} x {height}; it has no pixels")
    if width * height > spec.max_pixels:
        raise InvalidInput(
            f"{where} is {width} x {height}, {width * height} pixels; the limit is {spec.max_pixels} "
            "(encoder.max_pixels)"
        )
    if max(width, height) > MOST_UNEVEN * min(width, height):
        raise InvalidInput(f"{where} is {width} x {height}; no side may be more than {MOST_UNEVEN} times the other")


def _on_white(image: Any) -> Any:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
