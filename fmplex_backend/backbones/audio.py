"""Whisper's encoder: sound → one hidden state every 20 ms.

1. A vFM chooses the window that is heard, up to Whisper's own 30 s: the positions of what is not heard are left out,
   and with them nearly all of the work for short sounds. In the whole window it is transformers' encoder, exactly.
2. The spectrogram is that of transformers' feature extractor, over the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.facts import AudioInput, BackboneFacts
from fmplex_backend.backbones.folder import DTYPES, load_model, touchable
from fmplex_backend.backbones.source import fingerprint
from fmplex_backend.messages import Tokens

RATE, FFT, HOP = 16_000, 400, 160
STRIDE = 2
"""Of the second convolution: frames in a position."""


class WhisperBackbone(Backbone):
    """The encoder half of a Whisper model."""

    def __init__(self, spec: str, folder: Path, dtype: str, device: str) -> None:
        """Load ``spec``, whose files are in ``folder``. Raises `Refused`."""
        names = {r"^(model\.)?encoder\.": ""}  # the decoder's weights are left where they are
        self.model, _ = load_model(WhisperEncoder, folder, spec, dtype, device, key_mapping=names)
        self._dtype, self.device = DTYPES[dtype], device
        config = self.model.config
        filters = mel_filter_bank(
            num_frequency_bins=1 + FFT // 2,
            num_mel_filters=config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=RATE / 2,
            sampling_rate=RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.from_numpy(filters).to(torch.float32).T.contiguous()
        self.facts = BackboneFacts(
            spec=spec,
            fingerprint=fingerprint(folder),
            model_type=config.model_type,
            prefix="encoder",
            hidden_size=config.d_model,
            max_length=config.max_source_positions,
            input=AudioInput(RATE, HOP * STRIDE, config.max_source_positions * HOP * STRIDE / RATE),
            **touchable(self.model),
        )

    def shape(self, row: Tokens) -> tuple[int, ...]:
        """By the window."""
        return (len(row["audio"]),)

    def collate(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """``input_features`` [n, mel bins, frames]: log-mel spectrograms."""
        return {"input_features": self.spectrogram(torch.from_numpy(np.stack([row["audio"] for row in rows])))}

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Of sound [n, samples]."""
        whole = torch.stft(audio, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)
        power = (whole[..., :-1].abs() ** 2).contiguous()
        logs = (self._filters @ power).clamp(min=1e-10).log10()
        logs = torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8.0)
        return (logs + 4.0) / 4.0

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Hidden states behind the last norm."""
        encoder: Any = self.model
        x = nn.functional.gelu(encoder.conv1(inputs["input_features"].to(self._dtype)))
        x = nn.functional.gelu(encoder.conv2(x)).permute(0, 2, 1)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, None)
        hidden = encoder.layer_norm(x)
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        return Features(hidden, mask, inputs)

    @property
    def lengths(self) -> Sequence[int]:
        """Windows of .2, 1 and 5 s, and the longest."""
        return sorted({min(length, self.facts.max_length) for length in (10, 50, 250, 1500)})

    def sample(self, row: int, length: int) -> Tokens:
        """Noise of its own."""
        samples = length * HOP * STRIDE
        return {"audio": np.random.default_rng(row).uniform(-0.5, 0.5, samples).astype(np.float32)}


load = WhisperBackbone
"""As `registry` calls it."""
