"""Everything that can be chosen about making a task, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Kind
from fmplex_backend.repository.modalities import EncoderSpec, TextSpec
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks.kinds import SEPARATOR
from fmplex_tools.tasks.split import TEST_FRACTION

AdapterType = Literal["none", "lora"]
HeadChoice = Literal["linear", "mlp", "prototypes", "nearest"]
MLP_KINDS: tuple[Kind, ...] = ("classification", "multi_label", "regression")
DEFAULT_MAX_LENGTH = 128
POOLINGS = {
    "text": "mean",
    "image": "cls+mean",
    "audio": "mean+std",
    "series": "mean+std+levels",
    "image_text": "cls+last",
}
"""By modality, what a head reads unless told."""


@dataclass(frozen=True)
class LoraOptions:
    """A LoRA adapter: where it goes, how large it is, and how long it is trained."""

    rank: int = 8
    alpha: float | None = None
    """Scale; None is twice the rank."""
    target_modules: tuple[str, ...] | None = None
    """Names of linear layers inside a block, e.g. ``query``; ``("all-linear",)`` is all of them; None is queries and
    values, as the backbone calls them."""
    layers: tuple[int, ...] | None = None
    """Blocks that get an adapter, counted from 0; None is all of them. Upper layers only train faster."""
    rslora: bool = False
    epochs: int = 2
    learning_rate: float = 3e-3
    batch_rows: int = 32

    def __post_init__(self) -> None:
        _positive("--rank", self.rank)
        _positive("--epochs", self.epochs)
        _positive("--batch-rows", self.batch_rows)
        _positive("--learning-rate", self.learning_rate)
        if self.alpha is not None:
            _positive("--alpha", self.alpha)
        if self.target_modules == ():
            raise InvalidInput("--target-modules is empty; name linear layers, or all-linear")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise InvalidInput(f"--layers {self.layers}: name at least one layer, counted from 0")

    @property
    def scale(self) -> float:
        """``lora_alpha`` as PEFT takes it."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True)
class TaskOptions:
    """How a task is made. Raises `InvalidInput` for values and combinations that mean nothing."""

    kind: Kind | None = None
    """None finds it from the label column."""
    lora: LoraOptions | None = None
    """None trains the head alone, on frozen features."""
    head: HeadChoice = "linear"
    """``mlp``: with an inner layer; ``prototypes``: the mean of each label's rows; ``nearest``: the nearest training
    row. The last two are not trained."""
    pooling: Pooling | None = None
    """None is ``none`` for token classification, and else what suits the modality (`POOLINGS`)."""
    encoder: EncoderSpec = field(default_factory=lambda: TextSpec(max_length=DEFAULT_MAX_LENGTH))
    mix: int | None = None
    """Series: channels that the backbone sees in place of those that come in, by what these have in common (PCA)."""
    dimensions: int | None = None
    """Embedding: width of the trained projection; None is 128 where there are labels."""
    normalize: bool = True
    """Embedding: scale to unit length."""
    separator: str = SEPARATOR
    """Between the labels of a multi-label cell."""
    threshold: float = 0.5
    min_label_rows: int | None = None
    max_rows: int | None = None
    """Most training rows."""
    max_test_rows: int | None = None
    test_fraction: float = TEST_FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mix", "dimensions", "min_label_rows", "max_rows", "max_test_rows"):
            if (value := getattr(self, name)) is not None:
                _positive(f"--{name.replace('_', '-')}", value)
        if not 0 < self.test_fraction < 1:
            raise InvalidInput(f"--test-fraction {self.test_fraction} must lie between 0 and 1, e.g. 0.2")
        if not 0 < self.threshold < 1:
            raise InvalidInput(f"--threshold {self.threshold} must lie between 0 and 1, e.g. 0.5")
        if not self.separator:
            raise InvalidInput("--separator is empty; give the character between labels, e.g. '|'")

    def with_encoder(self, encoder: EncoderSpec) -> TaskOptions:
        """The same with another encoder."""
        return replace(self, encoder=encoder)

    def pooling_for(self, kind: Kind) -> Pooling:
        """The pooling to train with. Raises `InvalidInput` where ``kind`` cannot use the one that was asked for."""
        if kind == "token_classification":
            if self.pooling not in (None, "none"):
                raise InvalidInput(f"--pooling {self.pooling}: token classification keeps every token; leave it out")
            return "none"
        if self.pooling == "none":
            raise InvalidInput(f"--pooling none: kind {kind!r} needs one vector a row; use mean, cls or last")
        return self.pooling or POOLINGS[self.encoder.modality]

    def check_for(self, kind: Kind, labelled: bool) -> None:
        """Raise `InvalidInput` for options that ``kind`` would ignore."""
        if kind != "embedding" and self.dimensions is not None:
            raise InvalidInput(f"--dimensions is for embeddings, not for kind {kind!r}")
        if kind == "embedding" and not labelled and (self.lora is not None or self.dimensions is not None):
            raise InvalidInput(
                "an embedding is trained by its labels; give --label, or leave out --adapter, --dimensions"
            )
        if self.head == "mlp" and (kind not in MLP_KINDS or self.lora is not None):
            raise InvalidInput(f"--head mlp is for {', '.join(MLP_KINDS)}, and for no adapter")
        if self.head in ("prototypes", "nearest") and (kind != "classification" or self.lora is not None):
            raise InvalidInput(f"--head {self.head} classifies by the bare backbone: no other kind, and no adapter")
        if kind != "multi_label" and self.threshold != 0.5:
            raise InvalidInput(f"--threshold is for multi_label, not for kind {kind!r}")


def _positive(option: str, value: float) -> None:
    if not value > 0:
        raise InvalidInput(f"{option} {value} must be greater than 0")
