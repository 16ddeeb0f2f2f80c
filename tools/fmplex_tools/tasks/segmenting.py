"""Dense prediction: from pictures and masks to a vFM that labels every patch of a picture.

A mask is scaled and cropped as its picture is, without mixing its values; a patch has the label that most of its pixels
have. So what is learnt and measured is what the vFM answers: one label a patch, row by row from the upper left.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.encoders.image import ImageEncoder
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import ImageSpec
from fmplex_tools.tasks.api import create_task
from fmplex_tools.tasks.backbone import load_backbone
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.making import TaskResult
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.progress import Reporter

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MODES = ("1", "L", "P")
"""Pillow's names of pictures with a number of at most 8 bits for each pixel."""


def create_segmentation(
    repository: Path,
    name: str,
    examples: Examples,
    labels: Sequence[str],
    options: TaskOptions,
    *,
    fm: str,
    parameters: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Put a vFM into ``repository`` that tells each patch's label; ``labels`` are those of the masks' values 0, 1 ….

    ``examples`` has pictures for rows and the files of their masks for labels, both as bytes. Raises `FMplexError`.
    """
    backbone = load_backbone(repository, fm)
    own, spec = backbone.facts.input, options.encoder
    if not isinstance(own, ImageInput) or not isinstance(spec, ImageSpec):
        raise InvalidInput(f"physical FM {fm!r} takes no images; pass --fm one that does")
    return create_task(
        repository,
        name,
        by_patch(examples, labels, spec, own),
        replace(options, kind="token_classification"),
        fm=fm,
        parameters=dict(parameters or {}),
        backbone=backbone,
        reporter=reporter,
        sign_with=sign_with,
    )


def by_patch(examples: Examples, labels: Sequence[str], spec: ImageSpec, own: ImageInput) -> Examples:
    """``examples`` with a label for each patch in place of a mask; patches are its words. Raises `InvalidInput`."""
    size = spec.size or own.size
    side = size // own.patch
    encoder = ImageEncoder(replace(own, resample=int(Image.Resampling.NEAREST)))
    tags = []
    for number, (row, mask) in enumerate(zip(examples.rows, examples.labels or (), strict=True), start=1):
        values = _mask(mask, row, len(labels), f"row {number}")
        pixels = np.repeat(values[None, ..., None], 3, -1)
        [encoded] = encoder.encode(spec.model_copy(update={"pixels": True}), {"pixels": pixels})
        square = encoded.tokens["pixels"][: side * own.patch, : side * own.patch, 0]
        cells = square.reshape(side, own.patch, side, own.patch).swapaxes(1, 2).reshape(side * side, -1)
        tags.append(tuple(labels[int(np.bincount(cell).argmax())] for cell in cells))
    patches = tuple(str(place) for place in range(side * side))
    return replace(examples, labels=tuple(tags), words=(patches,) * len(tags), label_name="patch")


def _mask(data: bytes, picture: bytes, labels: int, where: str) -> NDArray[np.uint8]:
    """[height, width] of a mask, each value a label's number. Raises `InvalidInput`."""
    values, size = _read(data, f"{where}: its mask", lambda mask: _numbers(mask, where))
    _, wanted = _read(picture, f"{where}: its picture", ImageOps.exif_transpose)
    if size != wanted:
        raise InvalidInput(f"{where}: its mask is {size[0]} x {size[1]}, its picture {wanted[0]} x {wanted[1]}")
    if (largest := int(values.max())) >= labels:
        raise InvalidInput(f"{where}: its mask holds the value {largest}; the {labels} labels are 0 to {labels - 1}")
    made: NDArray[np.uint8] = values
    return made


def _numbers(mask: Any, where: str) -> NDArray[np.uint8]:
    if mask.mode not in MODES:
        raise InvalidInput(f"{where}: its mask has mode {mask.mode}; it is one number a pixel: grey or with a palette")
    return np.asarray(mask).astype(np.uint8)


def _read(data: bytes, where: str, look: Any) -> tuple[Any, tuple[int, int]]:
    """What ``look`` makes of an image, and the image's width and height. Raises `InvalidInput`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            made = look(image)
            return made, made.size if isinstance(made, Image.Image) else image.size
    except InvalidInput:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise InvalidInput(f"{where} cannot be decoded: {error or type(error).__name__}") from None
