"""What the host and ``fmplex check`` must know of a backbone without loading torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneFacts:
    """Told by the engine when it is ready; plain data."""

    spec: str
    """As the physical FM's ``backbone`` parameter names it."""
    fingerprint: str
    """See `fmplex_backend.backbones.source.fingerprint`."""
    family: str
    """``text``."""
    model_type: str
    """transformers' ``model_type``, e.g. ``bert``."""
    prefix: str
    """Name of the backbone inside transformers' task classes, e.g. ``bert`` in ``bert.encoder.layer.0``."""
    hidden_size: int
    max_length: int
    """Most tokens in a row, special tokens included."""
    layers: dict[str, tuple[int, int]]
    """Linear layers that adapters may touch: name → (out, in)."""
    biases: dict[str, int]
    """Modules with a bias that adapters may train: name → size."""
    token_type_ids: bool
    """Whether the backbone tells the two texts of a pair apart by type ids."""
    tokenizer: str
    """The tokenizer, serialized as ``tokenizer.json``."""
    pad_token_id: int
