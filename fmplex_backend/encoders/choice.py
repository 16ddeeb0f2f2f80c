"""The encoder that goes with a backbone."""

from __future__ import annotations

from fmplex_backend.backbones.facts import AudioInput, BackboneFacts, ImageInput, ImageTextInput, TextInput
from fmplex_backend.encoders.audio import AudioEncoder
from fmplex_backend.encoders.base import Encoder
from fmplex_backend.encoders.series import SeriesEncoder
from fmplex_backend.encoders.text import TextEncoder


def make_encoder(facts: BackboneFacts) -> Encoder:
    """By what the backbone reads."""
    match facts.input:
        case TextInput():
            return TextEncoder(facts)
        case ImageInput():
            from fmplex_backend.encoders.image import ImageEncoder  # Pillow takes memory in every host that has it

            return ImageEncoder(facts.input)
        case AudioInput():
            return AudioEncoder(facts.input)
        case ImageTextInput():
            from fmplex_backend.encoders.image_text import ImageTextEncoder  # Pillow again

            return ImageTextEncoder(facts, facts.input)
        case own:
            return SeriesEncoder(own)
