"""The backbone as training sees it: the server's own encoder and plug-in, so that features are those it serves.

What is added here is only what training needs: rows in batches of like length, a copy of the model for an adapter, and
the linear layers that an adapter may be put on.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import disable_progress_bar

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.backbones.registry import load_backbone as load_plugin
from fmplex_backend.encoders.choice import make_encoder
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.messages import Tokens
from fmplex_backend.repository.artifact import BackboneRef
from fmplex_backend.repository.config import CONFIG_FILE, FMSettings, fm_settings, is_physical, read_config
from fmplex_backend.repository.layout import physical_fms
from fmplex_backend.repository.modalities import EncoderSpec, ImageSpec, TextSpec
from fmplex_backend.repository.packed import check_encoder
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks.rows import tensors_of

FEATURE_BATCH_POSITIONS = 2048
"""Padded positions of one batch without gradients."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Encoded:
    """Rows ready for the backbone."""

    tokens: list[Tokens]
    """Per row what the backbone's encoder makes, e.g. ``input_ids`` int32 [tokens]."""
    sizes: list[int]
    """Positions of the backbone that each row takes; of text, tokens, special ones included."""
    words: list[list[int | None]] | None = None
    """Per row and token the word (split at spaces) that it is of; None for a special token."""

    def __len__(self) -> int:
        return len(self.tokens)

    def lengths(self) -> NDArray[np.int64]:
        """``sizes`` as an array."""
        return np.array(self.sizes, np.int64)


class Backbone:
    """A physical FM's backbone in fp32. ``model`` is never changed: adapters go on a `fresh_model`."""

    def __init__(self, spec: str) -> None:
        """Load ``spec`` (see `fmplex_backend.backbones.source`). Raises `NotFound` or `Refused`."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        disable_progress_bar()  # loading shows a bar of its own, across ours
        self._plugin = load_plugin(spec, "fp32", str(self.device))
        self._encoder = make_encoder(self._plugin.facts)
        self.facts = self._plugin.facts
        self.ref = BackboneRef(name=spec, fingerprint=self.facts.fingerprint)
        self.model: Any = self._plugin.model

    def fresh_model(self) -> Any:
        """A copy of the bare model, for PEFT to put an adapter into."""
        model = copy.deepcopy(self.model)
        model.name_or_path = self.facts.spec  # what PEFT writes into adapter_config.json: no path of this machine
        return model

    def encode(
        self, rows: Sequence[Any], pairs: Sequence[str] | None, spec: EncoderSpec, *, words: bool = False
    ) -> Encoded:
        """``rows`` by the server's own encoder; with ``words`` also the word of each token. Raises `InvalidInput`.

        Of an image, patches are its words.
        """
        if isinstance(spec, TextSpec) and isinstance(self._encoder, TextEncoder):
            encoded = self._encoder.encode_texts(spec, rows, pairs, offsets=words)  # all at once: many times as fast
        else:
            encoded = []
            for number, row in enumerate(rows):
                try:
                    encoded += self._encoder.encode(spec, tensors_of(row, None, spec))
                except InvalidInput as error:
                    raise InvalidInput(f"row {number + 1} of the data: {error}") from None
        tokens, sizes = [row.tokens for row in encoded], [row.size for row in encoded]
        if not words:
            return Encoded(tokens, sizes)
        if isinstance(spec, ImageSpec):
            special = self.facts.input.special if isinstance(self.facts.input, ImageInput) else 0
            return Encoded(tokens, sizes, [[None] * special + list(range(size - special)) for size in sizes])
        starts = [[0] + [place + 1 for place, char in enumerate(text) if char == " "] for text in rows]
        of_word = [
            [bisect_right(start, begin) - 1 if end > begin else None for begin, end in row.offsets or ()]
            for start, row in zip(starts, encoded, strict=True)
        ]
        return Encoded(tokens, sizes, of_word)

    def encode_tensors(self, tensors: Mapping[str, NDArray[Any]], spec: EncoderSpec) -> Encoded:
        """A request's tensors. Raises `InvalidInput`."""
        encoded = self._encoder.encode(spec, tensors)
        return Encoded([row.tokens for row in encoded], [row.size for row in encoded])

    def forward(self, encoded: Encoded, rows: Sequence[int], model: Any = None) -> Features:
        """What ``model``, the bare one or one that PEFT has wrapped, makes of ``rows``; gradients flow."""
        plugin = self._plugin
        if model is not None:
            plugin = copy.copy(plugin)
            plugin.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        chosen = [encoded.tokens[row] for row in rows]
        inputs = {name: tensor.to(self.device) for name, tensor in plugin.collate(chosen).items()}
        features = plugin.forward(inputs)
        counts = plugin.sequences(chosen)
        return features if counts is None else replace(features, counts=counts)

    def forecast(self, features: Features) -> torch.Tensor:
        """By the backbone's own head: fp32 [sequences, horizon, quantiles], all that it has."""
        return self._plugin.forecast(features)

    def features(
        self,
        encoded: Encoded,
        pooling: Pooling,
        *,
        model: Any = None,
        fast: bool = False,
        advance: Advance | None = None,
    ) -> NDArray[np.float32]:
        """Pooled vectors, fp32 [rows, width of the pooling], of ``model`` (by default the bare backbone).

        ``fast`` runs the backbone in bf16 where that is native: 2 to 3 times faster, and right to about 1e-2. It is for
        training rows only; whatever is reported is computed in fp32.
        """
        found: dict[int, NDArray[np.float32]] = {}
        for rows, features in self.run(encoded, model, fast, advance):
            found |= zip(rows, features.pooled(pooling).cpu().numpy(), strict=True)
        return np.stack([found[row] for row in range(len(encoded))])

    def token_features(
        self, encoded: Encoded, *, model: Any = None, fast: bool = False, advance: Advance | None = None
    ) -> list[NDArray[np.float32]]:
        """One fp32 [tokens of the row, hidden] a row, special tokens included; ``fast`` as in `features`."""
        found: dict[int, NDArray[np.float32]] = {}
        lengths = encoded.lengths()
        for rows, features in self.run(encoded, model, fast, advance):
            for place, row in enumerate(rows):
                found[row] = features.hidden[place, : lengths[row]].float().cpu().numpy()
        return [found[row] for row in range(len(encoded))]

    @torch.inference_mode()
    def run(
        self, encoded: Encoded, model: Any = None, fast: bool = False, advance: Advance | None = None
    ) -> Iterator[tuple[list[int], Features]]:
        """Rows in batches of like length, and what the backbone makes of each batch; options as of `features`."""
        for rows in batches_by_length(encoded.lengths(), FEATURE_BATCH_POSITIONS):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=fast and native_bf16(self.device)):
                features = self.forward(encoded, rows, model)
            yield rows, features
            if advance is not None:
                advance(len(rows))


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 is native on ``device``: emulated, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def batches_by_length(lengths: NDArray[np.int64], most_tokens: int) -> Iterator[list[int]]:
    """Row indices in batches of like length, longest first, each of at most ``most_tokens`` padded tokens."""
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        size = max(1, most_tokens // max(int(lengths[order[0]]), 1))
        yield order[:size]
        order = order[size:]


def load_backbone(repository: Path, fm: str) -> Backbone:
    """The backbone of the physical FM ``fm``. Raises `NotFound` with the FMs that there are, or `Refused`."""
    return Backbone(read_settings(repository, fm).backbone)


def read_settings(repository: Path, fm: str) -> FMSettings:
    """The settings of the physical FM ``fm``. Raises `NotFound` or `Refused`."""
    path = repository / fm / CONFIG_FILE
    if not path.is_file() or not is_physical(read_config(path)):
        known = ", ".join(physical_fms(repository)) or "none"
        raise NotFound(f"no physical FM {fm!r} in {repository}; there is {known}")
    return fm_settings(repository / fm)


def linear_layers(backbone: Backbone) -> dict[str, list[str]]:
    """Path inside a block → full names of the linear layers that an adapter may touch, e.g. ``output.dense``."""
    found: dict[str, list[str]] = {}
    for name in backbone.facts.layers:
        parts = name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        if numbers:  # only layers inside the numbered blocks: a pooler does not change hidden states
            found.setdefault(".".join(parts[numbers[0] + 1 :]), []).append(name)
    if not found:
        raise Refused(f"backbone {backbone.facts.spec!r} has no linear layers inside numbered blocks; LoRA needs some")
    return found


def check_fits(backbone: Backbone, spec: EncoderSpec) -> None:
    """Raise `InvalidInput` where the backbone does not take what the encoder makes."""
    if isinstance(spec, TextSpec) and backbone.facts.modality == "text":
        if spec.max_length is not None and spec.max_length > backbone.facts.max_length:
            raise InvalidInput(
                f"--max-length {spec.max_length} exceeds the backbone's {backbone.facts.max_length} tokens"
            )
        return
    try:
        check_encoder(spec, backbone.facts)
    except Refused as error:
        raise InvalidInput(str(error)) from None
