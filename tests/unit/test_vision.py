"""Image vFMs: decoding and resizing, and parity with plain transformers + PEFT, alone and in mixed batches."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.modal import Served, Task, headed, with_adapter
from support.small import IMAGE_SIZE, QV, VISION, file_of, make_vision, picture, processor
from transformers import AutoModel, AutoModelForImageClassification

from fmplex_backend.backbones.facts import ImageInput
from fmplex_backend.encoders.image import ImageEncoder
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.modalities import ImageSpec

TASKS = {
    1: Task(),
    2: Task(pooling="cls"),
    3: Task("regression", 2, "cls+mean"),
    4: Task(outputs=4, lora={"r": 4, "target_modules": QV}),
    5: Task("multi_label", 5, "max+std", lora={"r": 3, "use_dora": True, "target_modules": QV}),
    6: Task("embedding", pooling="mean", head="identity", normalize=True),
    7: Task("embedding", pooling="none", head="identity"),
    8: Task(encoder={"size": 28}, lora={"r": 2, "target_modules": "all-linear"}),
}


def row_of(data: bytes) -> dict[str, NDArray[Any]]:
    return {"image": np.array([[data]], object)}


@pytest.mark.parametrize("name", VISION)
def test_parity_alone_and_mixed(name: str, tmp_path: Path) -> None:
    folder = make_vision(tmp_path / "backbone", name)
    plain = AutoModel.from_pretrained(folder).eval()
    served = Served(tmp_path, folder)
    versions = {number: served.put(number, task, plain) for number, task in TASKS.items()}
    pictures = {seed: picture(seed, 90 - 5 * seed, 70 + 4 * seed) for seed in range(3)}

    def expected(number: int, seed: int) -> NDArray[np.float32]:
        task = TASKS[number]
        inputs = processor(name, task.encoder.get("size", IMAGE_SIZE))(pictures[seed], return_tensors="pt")
        asked = {} if name.startswith("dinov2") else {"interpolate_pos_encoding": True}
        with torch.inference_mode():
            hidden = with_adapter(plain, versions[number])(**inputs, **asked).last_hidden_state[0]
        patches = hidden[5 if name == "dinov2_with_registers" else 1 :]
        mean = patches.mean(0)
        parts = {
            "mean": mean,
            "cls": hidden[0],
            "max": patches.amax(0),
            "std": (patches - mean).square().mean(0).sqrt(),
        }
        read = patches if task.pooling == "none" else torch.cat([parts[p] for p in task.pooling.split("+")])
        return headed(versions[number], served.artifacts[number], read)

    asked = [(number, seed) for number in TASKS for seed in pictures]
    random.Random(0).shuffle(asked)
    rows = [(number, row_of(file_of(pictures[seed]))) for number, seed in asked]
    mixed = served.answers(rows)
    for (number, seed), row, answer in zip(asked, rows, mixed, strict=True):
        wanted = expected(number, seed)
        np.testing.assert_allclose(answer, wanted, atol=1e-5 * max(1, float(np.abs(wanted).max())))
        np.testing.assert_allclose(served.answers([row])[0], wanted, atol=1e-5 * max(1, float(np.abs(wanted).max())))


@pytest.mark.parametrize("name", ["dinov2", "vit"])
def test_the_head_of_transformers_own_class(name: str, tmp_path: Path) -> None:
    folder = make_vision(tmp_path / "backbone", name)
    whole = AutoModelForImageClassification.from_pretrained(folder, num_labels=3).eval()
    served = Served(tmp_path, folder)
    lora = {"r": 4, "target_modules": QV, "modules_to_save": ["classifier"]}
    version = served.put(1, Task(head="transformers", pooling="none", lora=lora), whole)
    image = picture(1)
    with torch.inference_mode():
        wanted = with_adapter(whole, version)(**processor(name, IMAGE_SIZE)(image, return_tensors="pt")).logits[0]
    np.testing.assert_allclose(served.answers([(1, row_of(file_of(image)))])[0], wanted.numpy(), atol=1e-5)


def test_raw_pixels_are_a_file_without_the_file(tmp_path: Path) -> None:
    folder = make_vision(tmp_path / "backbone", "vit")
    served = Served(tmp_path, folder)
    served.put(1, Task(), None)
    served.put(2, Task(encoder={"pixels": True}), None)
    image = picture(3)
    pixels = {"pixels": np.asarray(image)[None]}
    np.testing.assert_array_equal(
        served.encode(1, row_of(file_of(image)))["pixels"], served.encode(2, pixels)["pixels"]
    )


OWN = ImageInput(size=56, patch=14, special=1, crop=True, resize=64, resample=3)


def encode(spec: ImageSpec, *files: object) -> list[NDArray[Any]]:
    rows = ImageEncoder(OWN).encode(spec, {"image": np.array([[f] for f in files], object)})
    assert {row.size for row in rows} == {17}
    return [row.tokens["pixels"] for row in rows]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_formats(form: str) -> None:
    flat = Image.new("RGB", (80, 60), (200, 40, 90))
    [pixels] = encode(ImageSpec(), file_of(flat, form))
    assert pixels.shape == (56, 56, 3)
    assert np.abs(pixels.astype(int) - (200, 40, 90)).max() <= (4 if form in ("JPEG", "WEBP") else 0)


def test_modes_transparency_and_cameras() -> None:
    for mode in ("L", "P", "1", "I;16", "LA", "RGBA"):
        [pixels] = encode(ImageSpec(), file_of(Image.new(mode, (70, 60))))
        assert pixels.shape == (56, 56, 3)
    [white] = encode(ImageSpec(), file_of(Image.new("RGBA", (60, 60), (0, 0, 0, 0))))
    assert white.min() == 255
    upright = Image.new("RGB", (60, 120))
    upright.paste((255, 255, 255), (0, 0, 60, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = io.BytesIO()
    upright.rotate(90, expand=True).save(data, "PNG", exif=exif)
    [turned], [straight] = (
        encode(ImageSpec(crop=False), data.getvalue()),
        encode(ImageSpec(crop=False), file_of(upright)),
    )
    np.testing.assert_array_equal(turned, straight)


BROKEN = file_of(picture(0))


@pytest.mark.parametrize(
    ("spec", "file", "says"),
    [
        ({}, b"", "row 0: image is empty"),
        (
            {},
            b"no image at all",
            r"row 0: image is no image in one of JPEG, PNG, WEBP, GIF, BMP; it begins with b'no imag",
        ),
        ({}, BROKEN[:200], "row 0: image cannot be decoded: "),
        ({}, BROKEN[: len(BROKEN) // 2], "row 0: image cannot be decoded: "),
        ({"max_bytes": 10}, BROKEN, r"has \d+ bytes, the limit is 10 \(encoder.max_bytes\)"),
        ({"max_pixels": 6299}, BROKEN, r"is 90 x 70, 6300 pixels; the limit is 6299 \(encoder.max_pixels\)"),
        ({}, file_of(Image.new("1", (20_000, 20_000))), "is 20000 x 20000, 400000000 pixels; the limit is 50000000"),
        ({}, file_of(Image.new("L", (5000, 2))), "is 5000 x 2; no side may be more than 200 times the other"),
    ],
)
def test_bad_images(spec: dict[str, Any], file: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        encode(ImageSpec(**spec), file)


def test_every_cut_of_a_file_is_told() -> None:
    """Wherever a file ends, or a byte of it is another: an image or an error, never anything else."""
    chance = random.Random(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        whole = file_of(picture(0, 30, 30), form)
        for _ in range(60):
            data = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
            data[chance.randrange(len(data))] = chance.randrange(256)
            told = ""
            try:
                encode(ImageSpec(max_pixels=100_000), bytes(data))
            except InvalidInput as error:
                told = str(error)
            assert not told or told.startswith("row 0: image ")


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"size": 30}, "encoder.size 30 is no multiple of the backbone's patches of 14"),
        ({"size": 2800}, "encoder.size 2800 makes 40001 positions, the backbone takes"),
        ({"modality": "text"}, "its encoder reads text; backbone .* takes image"),
    ],
)
def test_encoders_that_do_not_fit(encoder: dict[str, Any], says: str, tmp_path: Path) -> None:
    served = Served(tmp_path, make_vision(tmp_path / "backbone", "vit"))
    with pytest.raises(Refused, match=says):
        served.put(1, Task(encoder=encoder), None)
