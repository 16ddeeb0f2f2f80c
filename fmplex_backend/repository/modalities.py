"""What goes into a vFM, by modality: the tensors on the wire, and the rules by which its encoder reads them.

==========  ======================================================  =======================================
modality    tensors, each with the batch dimension in front         what a position of the backbone is
==========  ======================================================  =======================================
``text``    ``text`` BYTES [1], ``text_pair`` BYTES [1]              a token
``image``   ``image`` BYTES [1], or ``pixels`` UINT8 [h, w, 3]       a patch
``audio``   ``audio`` FP32 [samples], ``sample_rate`` INT32 [1]      two frames of 10 ms
``series``  ``series`` FP32 [channels, time], ``observed`` BOOL      a patch of one channel
==========  ======================================================  =======================================

``image_text`` is an image and a text, or one of them alone, as the vFM says.

A physical FM declares all of them, each optional, since Triton asks for its tensors before there is a backbone; a
vFM's ensemble declares and feeds those that its own encoder reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Modality = Literal["text", "image", "audio", "series", "image_text"]


@dataclass(frozen=True)
class InputTensor:
    """One input as Triton declares it; ``dims`` are without the batch dimension, -1 is any."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor [rows, …] has this shape."""
        own = shape[1:]
        return len(own) == len(self.dims) and all(d in (-1, n) for d, n in zip(self.dims, own, strict=True))

    def __str__(self) -> str:
        shape = ", ".join("any" if d == -1 else str(d) for d in self.dims)
        return f"[rows, {shape}]"


TENSORS: dict[str, InputTensor] = {
    tensor.name: tensor
    for tensor in (
        InputTensor("text", "TYPE_STRING", (1,)),
        InputTensor("text_pair", "TYPE_STRING", (1,)),
        InputTensor("image", "TYPE_STRING", (1,)),
        InputTensor("pixels", "TYPE_UINT8", (-1, -1, 3)),
        InputTensor("audio", "TYPE_FP32", (-1,)),
        InputTensor("sample_rate", "TYPE_INT32", (1,)),
        InputTensor("series", "TYPE_FP32", (-1, -1)),
        InputTensor("observed", "TYPE_BOOL", (-1, -1)),
    )
}
"""Every tensor that a physical FM takes."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextSpec(_Spec):
    """The input side of a text vFM.

    Applied to each text in this order: ``collapse_whitespace``, ``lowercase``, ``prefix``, tokenize, truncate.
    """

    modality: Literal["text"] = "text"
    max_length: Annotated[int | None, Field(ge=4)] = None
    """Longest row in tokens, special tokens included; None is the backbone's own limit."""
    truncation: bool = True
    """Cut longer rows to ``max_length`` (longest of a pair first); if False they are an error."""
    pair: bool = False
    """Takes a second tensor, ``text_pair``."""
    prefix: str = ""
    lowercase: bool = False
    collapse_whitespace: bool = False
    max_bytes: Annotated[int, Field(ge=1, le=1 << 20)] = 65536
    """Longest text in bytes of UTF-8; a longer one is an error whatever ``truncation`` says."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return ("text", "text_pair") if self.pair else ("text",)


class ImageSpec(_Spec):
    """The input side of an image vFM: decode, turn as the file says, onto white, resize, crop the middle."""

    modality: Literal["image"] = "image"
    size: Annotated[int | None, Field(ge=8, le=4096)] = None
    """Height and width that the backbone sees, a multiple of its patches; None is the backbone's own."""
    crop: bool | None = None
    """Whether the shorter side is scaled and the middle cut out, or all is squeezed; None as the backbone does."""
    pixels: bool = False
    """Takes ``pixels`` as they are, RGB, in place of a file in ``image``."""
    max_bytes: Annotated[int, Field(ge=1, le=1 << 28)] = 1 << 24
    """Longest file."""
    max_pixels: Annotated[int, Field(ge=1, le=1 << 28)] = 50_000_000
    """Largest image, told by its header: no larger one is decoded."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return ("pixels",) if self.pixels else ("image",)


class AudioSpec(_Spec):
    """The input side of an audio vFM: samples between -1 and 1 at the backbone's own rate."""

    modality: Literal["audio"] = "audio"
    seconds: Annotated[float | None, Field(gt=0, le=600)] = None
    """The window that the backbone sees: shorter audio is filled with silence; None is the backbone's own."""
    truncation: bool = True
    """Cut what is longer than the window; if False it is an error."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return ("audio", "sample_rate")


Number = Annotated[float, Field(allow_inf_nan=False)]
MOST_CHANNELS = 1024


class ChannelMix(_Spec):
    """Channels made of those that come in, by a linear map, before the backbone sees them."""

    weight: Annotated[tuple[tuple[Number, ...], ...], Field(min_length=1, max_length=MOST_CHANNELS)]
    """[channels that the backbone sees][channels that come in]."""
    bias: tuple[Number, ...] | None = None
    """[channels that the backbone sees]; None is 0."""

    @model_validator(mode="after")
    def _shaped(self) -> ChannelMix:
        if len({len(row) for row in self.weight}) != 1 or not self.weight[0]:
            raise ValueError("'weight' has a list of numbers for each channel made, all of one length")
        if self.bias is not None and len(self.bias) != len(self.weight):
            raise ValueError(f"'bias' has {len(self.bias)} numbers, and 'weight' makes {len(self.weight)} channels")
        return self


class SeriesSpec(_Spec):
    """The input side of a time-series vFM."""

    modality: Literal["series"] = "series"
    channels: Annotated[int | None, Field(ge=1, le=MOST_CHANNELS)] = None
    """How many every row has; None is any number, which heads that read ``each`` channel cannot have."""
    mix: ChannelMix | None = None
    """The backbone sees these in place of what comes in; a step at which a channel has no value has none in them."""
    max_length: Annotated[int | None, Field(ge=1)] = None
    """Longest row in steps; None is the backbone's own limit."""
    truncation: bool = True
    """Of a longer row keep the latest steps; if False it is an error."""
    observed: bool = False
    """Takes a second tensor, ``observed``: False where the series has no value."""
    backwards: bool = False
    """Every channel goes through the backbone a second time with its last step first, so that a head knows what comes
    after a step from a backbone that looks back only."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return ("series", "observed") if self.observed else ("series",)

    @property
    def seen(self) -> int | None:
        """Channels that the backbone sees; None is any number."""
        return self.channels if self.mix is None else len(self.mix.weight)

    @model_validator(mode="after")
    def _of_its_channels(self) -> SeriesSpec:
        if self.mix is not None and self.channels != len(self.mix.weight[0]):
            raise ValueError(f"'mix' takes {len(self.mix.weight[0])} channels, so 'channels' must say so")
        return self


class ImageTextSpec(_Spec):
    """The input side of a vFM on a backbone that takes images and texts; what is None, the vFM does not take."""

    modality: Literal["image_text"] = "image_text"
    image: ImageSpec | None = ImageSpec()
    text: TextSpec | None = TextSpec()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""
        return (*(self.image.tensors if self.image else ()), *(self.text.tensors if self.text else ()))

    @model_validator(mode="after")
    def _something(self) -> ImageTextSpec:
        if self.image is None and self.text is None:
            raise ValueError("it takes an image, a text, or both")
        if self.text is not None and self.text.pair:
            raise ValueError("a text beside an image is one, no pair")
        return self


SPECS: Mapping[str, type[TextSpec | ImageSpec | AudioSpec | SeriesSpec | ImageTextSpec]] = {
    "text": TextSpec,
    "image": ImageSpec,
    "audio": AudioSpec,
    "series": SeriesSpec,
    "image_text": ImageTextSpec,
}


def _modality(value: Any) -> str:
    """Of an encoder as written, where ``modality`` may be left out for text."""
    if isinstance(value, dict):
        return str(value.get("modality", "text"))
    return str(getattr(value, "modality", "text"))


EncoderSpec = Annotated[
    Annotated[TextSpec, Tag("text")]
    | Annotated[ImageSpec, Tag("image")]
    | Annotated[AudioSpec, Tag("audio")]
    | Annotated[SeriesSpec, Tag("series")]
    | Annotated[ImageTextSpec, Tag("image_text")],
    Discriminator(
        _modality,
        custom_error_type="modality",
        custom_error_message="its 'modality' must be one of text, image, audio, series, image_text",
    ),
]
"""``encoder`` of ``vfm.json``."""
