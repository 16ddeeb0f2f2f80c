"""Audio vFMs: windows and bad sound, and parity with plain transformers + PEFT, alone and in mixed batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.modal import Served, Task, headed, with_adapter
from support.small import POSITIONS, QV, RATE, make_whisper, sound, whisper_config
from transformers import WhisperFeatureExtractor, WhisperForAudioClassification, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fmplex_backend.backbones.facts import AudioInput
from fmplex_backend.encoders.audio import AudioEncoder
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.modalities import AudioSpec

TASKS = {
    1: Task(),
    2: Task("regression", 2, "mean+std"),
    3: Task(outputs=4, lora={"r": 4, "target_modules": QV}),
    4: Task("multi_label", 5, "last+max", lora={"r": 3, "use_dora": True, "target_modules": QV}),
    5: Task("embedding", pooling="mean", head="identity", normalize=True, encoder={"seconds": 0.5}),
    6: Task("embedding", pooling="none", head="identity", encoder={"seconds": 0.51}),
    7: Task(encoder={"seconds": 1.0}, lora={"r": 2, "target_modules": "all-linear"}),
}


def encoder_of(folder: Path, positions: int) -> Any:
    """transformers' own encoder, made for a window of so many positions."""
    whole = WhisperModel.from_pretrained(folder).encoder
    made = WhisperEncoder(whisper_config(positions))
    state = whole.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
    made.load_state_dict(state)
    return made.eval()


def row_of(audio: NDArray[np.float32], rate: int = RATE) -> dict[str, NDArray[Any]]:
    return {"audio": audio[None], "sample_rate": np.array([[rate]], np.int32)}


def spectrogram(audio: NDArray[np.float32], window: float) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=window)
    extractor.n_samples = round(window * RATE)
    found: torch.Tensor = extractor(audio, sampling_rate=RATE, return_tensors="pt", max_length=round(window * RATE))[
        "input_features"
    ]
    return found


def test_parity_alone_and_mixed(tmp_path: Path) -> None:
    folder = make_whisper(tmp_path / "backbone")
    served = Served(tmp_path, folder)
    whole = encoder_of(folder, POSITIONS)
    versions = {number: served.put(number, task, whole) for number, task in TASKS.items()}
    sounds = {seed: sound(seed, seconds) for seed, seconds in enumerate((0.3, 0.5, 1.7, 2.6))}

    def expected(number: int, seed: int) -> NDArray[np.float32]:
        task = TASKS[number]
        positions = round(np.ceil(task.encoder.get("seconds", 2.0) * RATE / 320 - 1e-9))
        plain = with_adapter(encoder_of(folder, positions), versions[number])
        window = positions * 320 / RATE
        with torch.inference_mode():
            hidden = plain(spectrogram(sounds[seed][: positions * 320], window)).last_hidden_state[0]
        mean = hidden.mean(0)
        spread = (hidden - mean).square().mean(0).sqrt()
        parts = {"mean": mean, "last": hidden[-1], "max": hidden.amax(0), "std": spread}
        read = hidden if task.pooling == "none" else torch.cat([parts[p] for p in task.pooling.split("+")])
        return headed(versions[number], served.artifacts[number], read)

    asked = [(number, seed) for number in TASKS for seed in sounds]
    random.Random(0).shuffle(asked)
    rows = [(number, row_of(sounds[seed])) for number, seed in asked]
    for (number, seed), row, answer in zip(asked, rows, served.answers(rows), strict=True):
        wanted = expected(number, seed)
        atol = 1e-5 * max(1, float(np.abs(wanted).max()))
        np.testing.assert_allclose(answer, wanted, atol=atol)
        np.testing.assert_allclose(served.answers([row])[0], wanted, atol=atol)


def test_the_head_of_transformers_own_class(tmp_path: Path) -> None:
    folder = make_whisper(tmp_path / "backbone")
    whole = WhisperForAudioClassification(whisper_config())
    whole.config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(1)
        whole.classifier = torch.nn.Linear(16, 3)
    whole.encoder.load_state_dict(WhisperModel.from_pretrained(folder).encoder.state_dict())
    served = Served(tmp_path, folder)
    lora = {"r": 4, "target_modules": QV, "modules_to_save": ["classifier", "projector"]}
    version = served.put(1, Task(head="transformers", pooling="none", lora=lora), whole.eval())
    audio = sound(1, 1.5)
    with torch.inference_mode():
        wanted = with_adapter(whole, version)(spectrogram(audio, 2.0)).logits[0]
    np.testing.assert_allclose(served.answers([(1, row_of(audio))])[0], wanted.numpy(), atol=1e-5)


OWN = AudioInput(RATE, 320, 2.0)


def encode(spec: AudioSpec, audio: NDArray[np.float32], rate: int = RATE) -> NDArray[Any]:
    [row] = AudioEncoder(OWN).encode(spec, row_of(audio, rate))
    assert row.size * 320 == len(row.tokens["audio"])
    return row.tokens["audio"]


def test_windows() -> None:
    audio = sound(0, 1.0)
    assert len(encode(AudioSpec(), audio)) == 32_000
    assert len(encode(AudioSpec(seconds=0.5), audio)) == 8_000
    assert len(encode(AudioSpec(seconds=0.501), audio)) == 8_320, "whole positions"
    filled = encode(AudioSpec(), audio)
    np.testing.assert_array_equal(filled[:16_000], audio)
    assert not filled[16_000:].any()
    np.testing.assert_array_equal(encode(AudioSpec(seconds=0.5), audio), audio[:8_000])


@pytest.mark.parametrize(
    ("spec", "audio", "rate", "says"),
    [
        ({}, np.zeros(0), RATE, "row 0: audio has no samples"),
        (
            {},
            np.zeros(9),
            44_100,
            "sample_rate is 44100; the backbone hears 16000 samples a second, so resample it",
        ),
        ({"truncation": False}, np.zeros(32_001), RATE, r"has 32001 samples, the limit is 32000 \(encoder.seconds\)"),
        ({}, np.array([0, np.nan, 1]), RATE, "row 0: audio is nan at sample 1"),
        ({}, np.array([0, 0, -np.inf]), RATE, "row 0: audio is -inf at sample 2"),
        ({}, np.array([0, 12_000.0]), RATE, "row 0: audio reaches 12000; samples lie between -1 and 1: scale them"),
    ],
)
def test_bad_sound(spec: dict[str, Any], audio: NDArray[Any], rate: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        encode(AudioSpec(**spec), audio.astype(np.float32), rate)


def test_a_rate_that_is_not_given() -> None:
    with pytest.raises(InvalidInput, match="with 'audio', 'sample_rate' must be given"):
        AudioEncoder(OWN).encode(AudioSpec(), {"audio": np.zeros((1, 9), np.float32)})


def test_a_window_beyond_the_backbones(tmp_path: Path) -> None:
    served = Served(tmp_path, make_whisper(tmp_path / "backbone"))
    with pytest.raises(Refused, match=r"encoder.seconds 3 exceeds the backbone's window of 2 s"):
        served.put(1, Task(encoder={"seconds": 3}), None)
