"""The input side of vFMs that take an image, a text, or both. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts, ImageTextInput
from fmplex_backend.encoders.base import EncodedRow, Encoder, check_tensors
from fmplex_backend.encoders.image import ImageEncoder
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.repository.modalities import EncoderSpec, ImageTextSpec


class ImageTextEncoder(Encoder):
    """Does what the encoders of images and of texts do; a row has the arrays of both."""

    def __init__(self, facts: BackboneFacts, own: ImageTextInput) -> None:
        self._image = ImageEncoder(own.image)
        self._text = TextEncoder(replace(facts, input=own.text, max_length=own.text_length))

    def encode(self, spec: EncoderSpec, inputs: Mapping[str, Array], *, offsets: bool = False) -> list[EncodedRow]:
        """See `Encoder`."""
        assert isinstance(spec, ImageTextSpec)
        rows = check_tensors(spec, inputs)
        found: list[list[EncodedRow]] = []
        for encoder, part in ((self._image, spec.image), (self._text, spec.text)):
            if part is not None:
                own = {name: inputs[name] for name in part.tensors}
                found.append(encoder.encode(part, own))
        parts = [[own[row] for own in found] for row in range(rows)]
        return [
            EncodedRow({name: array for one in own for name, array in one.tokens.items()}, sum(one.size for one in own))
            for own in parts
        ]
