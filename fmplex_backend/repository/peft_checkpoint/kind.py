"""What every kind of checkpoint has in common: its two files, its configuration, and what is read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.config import explain

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter, whatever its kind; all arrays fp32. What an adapter does not have is empty.

    A layer's output becomes, with W its weight and c its bias (the backbone's own, or the one in ``bias``)::

        LoRA   y = W x + B (A x) + bias_delta + c
        DoRA   y = m ⊙ (W x + B (A x)) + c            m = magnitude / ‖W + B A‖, the norm of each row [out]
        IA³    y = out_scale ⊙ (W x + c)              or   y = W (in_scale ⊙ x) + c

    With a prompt, every row of a batch begins with these vectors in the place of word embeddings (see `prompt`).
    """

    a: dict[str, Array] = field(default_factory=dict)
    """Layer → [rank, in]."""
    b: dict[str, Array] = field(default_factory=dict)
    """Layer → [out, rank], PEFT's scaling multiplied in."""
    bias_delta: dict[str, Array] = field(default_factory=dict)
    """Layer → [out]: what `lora_B` itself adds (``lora_bias``), scaled."""
    bias: dict[str, Array] = field(default_factory=dict)
    """Module → [size]: a trained bias that takes the place of the backbone's own."""
    head: dict[str, Array] = field(default_factory=dict)
    """Parameters outside the backbone that PEFT saved along (``modules_to_save``), e.g. ``classifier.weight``."""
    magnitude: dict[str, Array] = field(default_factory=dict)
    """Layer → [out]: DoRA's trained magnitude. Every such layer has ``a`` and ``b``."""
    out_scale: dict[str, Array] = field(default_factory=dict)
    """Layer → [out]: IA³'s factor on the layer's output, its bias included."""
    in_scale: dict[str, Array] = field(default_factory=dict)
    """Layer → [in]: IA³'s factor on the layer's input, on feed-forward layers."""
    prompt: Array | None = None
    """[virtual tokens, hidden]: trained word embeddings before those of the row."""
    task_type: str | None = None
    """PEFT's ``task_type``, which decides what becomes of a prompt's type ids (see `prompt`)."""

    @property
    def rank(self) -> int:
        """The largest LoRA rank of any layer, 0 for other kinds."""
        return max((a.shape[0] for a in self.a.values()), default=0)

    @property
    def virtual_tokens(self) -> int:
        """Positions that the prompt takes from every row's `BackboneFacts.max_length`."""
        return 0 if self.prompt is None else int(self.prompt.shape[0])


class CheckpointConfig(BaseModel):
    """The parts of ``adapter_config.json`` that decide what the weights mean; the rest is about training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: str
    task_type: str | None = None

    def check(self, facts: BackboneFacts) -> None:
        """Raise `Refused` for what would be answered wrongly if it were ignored."""

    def read(self, tensors: dict[str, Array], facts: BackboneFacts, max_rank: int) -> AdapterWeights:
        """The adapter in ``tensors``, the whole weights file. Raises `Refused`."""
        raise NotImplementedError


Config = TypeVar("Config", bound=CheckpointConfig)


def parse(model: type[Config], content: Any) -> Config:
    """``content`` as ``model``. Raises `Refused` naming the key and its value."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise Refused(f"{CONFIG}: {explain(error, model, 'key')}") from None


def expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Raise `Refused` where ``array`` has not the shape that backbone and configuration ask for."""
    if array.shape != shape:
        raise Refused(
            f"{WEIGHTS}: {name} has shape {list(array.shape)}; with this backbone and {CONFIG} it is {list(shape)}"
        )
