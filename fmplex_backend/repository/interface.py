"""Whether what a vFM's ``config.pbtxt`` promises its clients is what its artifact can give."""

from __future__ import annotations

from fmplex_backend.errors import Refused
from fmplex_backend.repository.config import VfmConfig
from fmplex_backend.repository.layout import socket_dims
from fmplex_backend.repository.modalities import EncoderSpec
from fmplex_backend.repository.packed import VersionContent


def check_interface(config: VfmConfig, content: VersionContent, fm_max_batch_size: int) -> None:
    """Raise `Refused` where an output, its dims or an input of ``config`` does not fit ``content``."""
    artifact = content.artifact
    given = socket_dims(artifact.kind, artifact.pooling, content.width)
    for name, (_, socket) in config.outputs.items():
        if socket not in given:
            raise Refused(
                f"output {name!r} maps socket {socket!r}, which kind {artifact.kind!r} does not fill; "
                f"it fills {', '.join(given)}"
            )
        _check_dims(name, config.output_dims.get(name), given[socket])
    check_inputs(config.inputs, artifact.encoder)
    if config.max_batch_size > fm_max_batch_size:
        raise Refused(
            f"max_batch_size {config.max_batch_size} exceeds the {fm_max_batch_size} of physical FM {config.fm!r}"
        )


def _check_dims(name: str, declared: tuple[int, ...] | None, given: list[int]) -> None:
    if declared is None:
        return  # an inner tensor of the ensemble, which no client sees
    fits = len(declared) == len(given) and all(d in (-1, g) for d, g in zip(declared, given, strict=True))
    if not fits:
        raise Refused(f"output {name!r} declares dims {list(declared)}, the artifact gives {given}")


def check_inputs(inputs: frozenset[str], encoder: EncoderSpec) -> None:
    """Raise `Refused` where the step feeds a tensor that the encoder does not take, or lacks one that it needs."""
    if inputs != set(encoder.tensors):
        raise Refused(f"its step feeds {sorted(inputs)}; its encoder reads {sorted(encoder.tensors)}")
