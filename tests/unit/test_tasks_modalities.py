"""Tasks of pictures, sound and series: from a data file to a version that a server would take, golden rows and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.modal import Served, answers_of
from support.small import file_of, make_patchtst, make_vision, make_whisper, picture, series, sound
from support.tiny import make_fm_repository, make_tiny_bert
from test_client_rows import write_wav
from typer.testing import CliRunner

from fmplex_backend.errors import InvalidInput
from fmplex_backend.messages import LoadGeneration, RunBatch
from fmplex_backend.repository.golden import compare, read_golden
from fmplex_backend.repository.modalities import AudioSpec, ImageSpec, SeriesSpec, TextSpec
from fmplex_backend.repository.packed import pack, read_version
from fmplex_tools.cli import app
from fmplex_tools.tasks import Columns, read_examples
from fmplex_tools.tasks.api import create_task
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import LoraOptions, TaskOptions
from fmplex_tools.tasks.rows import Sound

ROWS = 24
MADE: dict[str, Any] = {}


def tinted(seed: int, red: bool) -> bytes:
    pixels = np.asarray(picture(seed)).copy()
    pixels[..., 0 if red else 2] = 250
    return file_of(Image.fromarray(pixels))


def examples(modality: str) -> Examples:
    """Two labels that are easy to tell."""
    labels = ("a", "b") * (ROWS // 2)
    rows: list[Any] = []
    for number in range(ROWS):
        first = number % 2 == 0
        if modality == "image":
            rows.append(tinted(number, first))
        elif modality == "audio":
            pitch = 300 if first else 2000
            at = np.arange(8000) / 16_000
            wave = 0.4 * np.sin(2 * np.pi * (pitch + 3 * number) * at) + 0.02 * sound(number, 0.5)
            rows.append(Sound(wave.astype(np.float32), 16_000))
        elif modality == "series":
            rows.append(series(number, 2, 30) + (200 if first else 0))
        else:
            rows.append(f"good film {number}" if first else f"bad book {number}")
    return Examples(rows=tuple(rows), labels=labels, source="made here")


ENCODERS = {
    "text": TextSpec(max_length=16),
    "image": ImageSpec(),
    "audio": AudioSpec(seconds=0.5),
    "series": SeriesSpec(channels=2),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A physical FM of each modality, named by it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "repository").mkdir()
    made = {
        "text": make_tiny_bert(folder / "text"),
        "image": make_vision(folder / "image", "dinov2"),
        "audio": make_whisper(folder / "audio"),
        "series": make_patchtst(folder / "series"),
    }
    for fm, backbone in made.items():
        make_fm_repository(folder / "repository", fm, backbone)
    return folder / "repository"


HOW: dict[str, dict[str, Any]] = {
    "linear": {},
    "lora": {"lora": LoraOptions(rank=2, epochs=1, batch_rows=8)},
    "prototypes": {"head": "prototypes"},
    "nearest": {"head": "nearest"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("modality", ENCODERS)
def test_what_is_made_is_what_is_served(repository: Path, tmp_path: Path, modality: str, how: str) -> None:
    data, name = examples(modality), f"{modality}_{how}"
    backbone = MADE.setdefault(modality, Backbone(str(repository.parent / modality)))
    options = TaskOptions(encoder=ENCODERS[modality], **HOW[how])
    result = create_task(repository, name, data, options, fm=modality, backbone=backbone)
    assert result.artifact.quality is not None
    if how == "linear":  # the backbones are random: what is near what means nothing
        assert result.artifact.quality.value >= 0.75
    version = repository / name / "1"
    content = read_version(version, version, backbone.facts, 64)
    golden = read_golden(version, version, content.artifact, content.width)
    assert golden is not None, "its own held-out rows, as a client sends them"
    served = Served(tmp_path, repository.parent / modality)
    pack(content, tmp_path / "packed.safetensors")
    assert served.worker.load(LoadGeneration(1, name, 1, str(tmp_path / "packed.safetensors"))).error is None
    encoded = [row for asked in golden.inputs for row in served.encoder.encode(content.artifact.encoder, asked.tensors)]
    done = served.worker.run(RunBatch(1, [1] * len(encoded), [row.tokens for row in encoded]))
    compare(golden, answers_of(done, len(encoded)), "fp32")


def write_data(folder: Path, modality: str) -> Path:
    """The examples as a data file with files beside it."""
    folder.mkdir()
    lines = []
    for number, (row, label) in enumerate(zip(examples(modality).rows, examples(modality).labels or (), strict=True)):
        if modality == "image":
            (folder / f"{number}.png").write_bytes(row)
            value: Any = f"{number}.png"
        elif modality == "audio":
            value = write_wav(folder / f"{number}.wav", (row.samples * 32767).astype("<i2")).name
        elif modality == "series":
            value = row.tolist()
        else:
            value = row
        lines.append(json.dumps({"row": value, "label": label}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


@pytest.mark.parametrize("modality", ENCODERS)
def test_from_the_shell(repository: Path, tmp_path: Path, modality: str) -> None:
    data = write_data(tmp_path / "data", modality)
    command = ["task", "create", f"shell_{modality}", "-d", str(data), f"--{modality}", "row", "--label", "label"]
    command += ["--max-length", "32"] if modality == "text" else []
    done = CliRunner().invoke(app, [*command, "--fm", modality, "-r", str(repository), "--head", "prototypes"])
    assert done.exit_code == 0, done.output
    told = json.loads((repository / f"shell_{modality}" / "1" / "vfm.json").read_text())
    assert (told["encoder"]["modality"], told["head"]) == (modality, "prototypes")
    if modality == "series":
        assert told["encoder"]["channels"] == 2


@pytest.mark.parametrize(
    ("modality", "value", "says"),
    [
        ("image", "none.png", "column 'x', row 1 is no image: .*No such file"),
        ("audio", "data.jsonl", "column 'x', row 1 is no audio: .*as WAV"),
        ("series", "1,two", "column 'x', row 1 is no series"),
        ("series", [[1, 2], [3]], "column 'x', row 1 is no series"),
        ("series", "", "column 'x' has no series in row 1"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, modality: Any, value: Any, says: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"x": value}))
    with pytest.raises(InvalidInput, match=says):
        read_examples(path, Columns("x", modality=modality))


def test_options_that_mean_nothing(repository: Path) -> None:
    with pytest.raises(InvalidInput, match=r"its encoder reads series; backbone .* takes image"):
        create_task(repository, "x", examples("series"), TaskOptions(encoder=SeriesSpec(channels=2)), fm="image")
    options = TaskOptions(encoder=ImageSpec(), head="nearest", lora=LoraOptions())
    with pytest.raises(InvalidInput, match="--head nearest classifies by the bare backbone"):
        create_task(repository, "x", examples("image"), options, fm="image")
    done = CliRunner().invoke(app, ["task", "create", "x", "-d", "data.csv", "--text", "a", "--image", "b"])
    assert "name the column that goes in, by one of --text, --image, --audio, --series" in done.output
