"""What the host and ``fmplex check`` must know of a backbone without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fmplex_backend.repository.modalities import Modality


@dataclass(frozen=True)
class TextInput:
    """How text becomes tokens."""

    modality: ClassVar[Modality] = "text"
    tokenizer: str
    """The tokenizer, serialized as ``tokenizer.json``."""
    pad_token_id: int
    token_type_ids: bool
    """Whether the backbone tells the two texts of a pair apart by type ids."""


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes patches."""

    modality: ClassVar[Modality] = "image"
    size: int
    """Height and width that the backbone was made for, in pixels."""
    patch: int
    """Height and width of a patch."""
    special: int
    """Positions in front of the patches: class token and registers."""
    crop: bool
    """Whether the middle of an image is cut out, unless a vFM says otherwise."""
    resize: int
    """With ``crop``: the shorter side before it, for an image of ``size``."""
    resample: int
    """Pillow's number of the filter."""
    any_size: bool = True
    """Whether it sees images of other sizes too, which are whole patches."""

    def positions(self, size: int) -> int:
        """Of an image with this height and width."""
        return (size // self.patch) ** 2 + self.special


@dataclass(frozen=True)
class AudioInput:
    """How sound becomes frames."""

    modality: ClassVar[Modality] = "audio"
    sample_rate: int
    samples: int
    """Samples that a position stands for."""
    seconds: float
    """The longest window, and the one unless a vFM says otherwise."""


@dataclass(frozen=True)
class SeriesInput:
    """How a series becomes patches; every channel goes through the backbone by itself."""

    modality: ClassVar[Modality] = "series"
    context: int
    """Steps that the backbone sees; a shorter series is filled in front with steps that have no value."""
    positions: int
    """Of a channel."""
    special: int
    """Positions in front of the patches."""
    horizon: int = 0
    """Steps that the backbone forecasts by itself; 0 where it does not."""
    quantiles: tuple[float, ...] = ()
    """Of its forecasts, ascending."""
    patch: int = 0
    """Steps that a position stands for; 0 where positions share steps, or leave some out."""


@dataclass(frozen=True)
class ImageTextInput:
    """How an image and a text go in."""

    modality: ClassVar[Modality] = "image_text"
    image: ImageInput
    text: TextInput
    text_length: int
    """Most tokens of a text, special tokens included."""
    both: bool
    """Whether the backbone makes nothing of one without the other."""


@dataclass(frozen=True)
class BackboneFacts:
    """Told by the engine when it is ready; plain data."""

    spec: str
    """As the physical FM's ``backbone`` parameter names it."""
    fingerprint: str
    """See `fmplex_backend.backbones.source.fingerprint`."""
    model_type: str
    """transformers' ``model_type``, e.g. ``bert``."""
    prefix: str
    """Name of the backbone inside transformers' task classes, e.g. ``bert`` in ``bert.encoder.layer.0``."""
    hidden_size: int
    max_length: int
    """Most positions of a row: tokens, special tokens included, or patches, or frames; of a series, of a channel."""
    layers: dict[str, tuple[int, int]]
    """Linear layers that adapters may touch: name → (out, in)."""
    biases: dict[str, int]
    """Modules with a bias that adapters may train: name → size."""
    input: TextInput | ImageInput | AudioInput | SeriesInput | ImageTextInput

    @property
    def modality(self) -> Modality:
        """What it reads."""
        return self.input.modality
