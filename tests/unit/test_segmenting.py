"""Dense prediction: what a mask says of each patch, and a vFM that learns it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.modal import Served
from support.small import IMAGE_SIZE, file_of, make_vision, picture
from support.tiny import make_fm_repository
from typer.testing import CliRunner

from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import ImageSpec
from fmplex_tools.cli import app
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.manage import show_task
from fmplex_tools.tasks.segmenting import by_patch

OWN = ImageInput(size=28, patch=14, special=1, crop=False, resize=28, resample=3)


def mask_of(values: np.ndarray, *, palette: bool = False) -> bytes:
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P", colors=4)
        image = Image.fromarray(values.astype(np.uint8), mode="P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("palette", [False, True])
def test_the_label_of_most_of_a_patch(palette: bool) -> None:
    values = np.zeros((56, 56))
    values[:28, 28:], values[28:, :20] = 1, 2  # the lower left: 20 of 28 columns are 2
    examples = Examples(rows=(file_of(picture(0).resize((56, 56))),), labels=(mask_of(values, palette=palette),))
    made = by_patch(examples, ("ground", "leaf", "stone"), ImageSpec(), OWN)
    assert made.labels == (("ground", "leaf", "stone", "ground"),)
    assert made.words == (("0", "1", "2", "3"),)


def test_it_is_cropped_as_its_picture() -> None:
    values = np.zeros((28, 84))
    values[:, 28:42] = 1  # of the middle, the left half
    examples = Examples(rows=(file_of(picture(0).resize((84, 28))),), labels=(mask_of(values),))
    made = by_patch(examples, ("a", "b"), ImageSpec(crop=True), OWN)
    assert made.labels == (("b", "a", "b", "a"),)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (mask_of(np.full((56, 56), 3)), "row 1: its mask holds the value 3; the 2 labels are 0 to 1"),
        (mask_of(np.zeros((56, 28))), "row 1: its mask is 28 x 56, its picture 56 x 56"),
        (file_of(Image.new("RGB", (56, 56))), "row 1: its mask has mode RGB; it is one number a pixel"),
        (b"no image", "row 1: its mask cannot be decoded"),
    ],
)
def test_bad_masks(mask: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        by_patch(Examples(rows=(file_of(picture(0).resize((56, 56))),), labels=(mask,)), ("a", "b"), ImageSpec(), OWN)


def test_a_vfm_from_masks(tmp_path: Path) -> None:
    spec = make_vision(tmp_path / "backbone", "dinov2")
    make_fm_repository(tmp_path / "repository", "seeing", spec)
    chance, lines = np.random.default_rng(0), ["photo,mask"]
    for number in range(24):
        pixels = chance.integers(0, 60, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        values = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
        left, top = 14 * chance.integers(0, 3, 2)
        pixels[top : top + 28, left : left + 28, 0] += 190
        values[top : top + 28, left : left + 28] = 1
        (tmp_path / f"{number}.png").write_bytes(file_of(Image.fromarray(pixels)))
        (tmp_path / f"{number}.mask.png").write_bytes(mask_of(values))
        lines.append(f"{number}.png,{number}.mask.png")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    command = ["task", "segment", "red", "-d", str(tmp_path / "data.csv"), "--image", "photo", "--mask", "mask",
               "--labels", "ground,red", "--fm", "seeing", "-r", str(tmp_path / "repository")]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, (done.output, done.exception)
    artifact = show_task(tmp_path / "repository", "red").artifact
    assert artifact is not None
    assert artifact.kind == "token_classification"
    assert artifact.labels == ("ground", "red")
    assert artifact.quality is not None
    assert artifact.quality.value > artifact.quality.baseline + 0.1
    served = Served(tmp_path, spec)
    served.load(1, tmp_path / "repository/red/1")
    [answer] = served.answers([(1, {"image": np.array([[(tmp_path / "0.png").read_bytes()]], object)})])
    assert answer.shape == ((IMAGE_SIZE // 14) ** 2, 2), "one for each patch"
    bad = [*command[:2], "blue", *command[3:]]
    bad[bad.index("ground,red")] = "ground"
    refused = CliRunner().invoke(app, bad)
    assert "give at least two different ones" in refused.output
