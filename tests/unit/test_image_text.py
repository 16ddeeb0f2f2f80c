"""Images and texts together: CLIP and LLaVA against plain transformers + PEFT, in mixed batches; zero-shot labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.modal import Served, Task, answers_of, headed, with_adapter
from support.small import IMAGE_SIZE, QV, file_of, make_clip, make_llava, picture, processor
from support.tiny import make_fm_repository
from transformers import AutoTokenizer, CLIPModel, LlavaModel

from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.messages import LoadGeneration, RunBatch
from fmplex_backend.repository.golden import compare, read_golden
from fmplex_backend.repository.modalities import ImageTextSpec
from fmplex_backend.repository.packed import pack, read_version
from fmplex_client.rows import chunks
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.zero_shot import create_zero_shot

TEXTS = ("a good film", "not a very bad book", "the film")
PICTURES = {seed: picture(seed, 80 - 6 * seed, 60 + 5 * seed) for seed in range(3)}


def row_of(seed: int | None, text: str | None) -> dict[str, NDArray[Any]]:
    image = {} if seed is None else {"image": np.array([[file_of(PICTURES[seed])]], object)}
    return image | ({} if text is None else {"text": np.array([[text.encode()]], object)})


def pixels(seed: int) -> torch.Tensor:
    found: torch.Tensor = processor("clip_vision_model", IMAGE_SIZE)(PICTURES[seed], return_tensors="pt")[
        "pixel_values"
    ]
    return found


LORA = {"r": 4, "target_modules": QV}
CLIP_TASKS = {
    1: Task(pooling="cls+last"),
    2: Task("regression", 1, head="similarity", pooling="cls"),
    3: Task("embedding", pooling="cls", head="identity", encoder={"text": None}),
    4: Task("embedding", pooling="last", head="identity", encoder={"image": None}),
    5: Task(outputs=4, pooling="cls+last", lora=LORA),
    6: Task(pooling="cls", encoder={"text": None}, lora={"r": 2, "use_dora": True, "target_modules": QV}),
}


def test_clip_alone_and_mixed(tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "backbone")
    plain, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    served = Served(tmp_path, folder)
    versions = {number: served.put(number, task, plain) for number, task in CLIP_TASKS.items()}

    def expected(number: int, seed: int | None, text: str | None) -> NDArray[np.float32]:
        model = with_adapter(plain, versions[number])
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        vectors = []
        with torch.inference_mode():
            if seed is not None:
                vectors.append(model.get_image_features(pixels(seed)))
            if text is not None:
                vectors.append(model.get_text_features(**tokenizer(text, return_tensors="pt")))
        plainly = [v if isinstance(v, torch.Tensor) else v.pooler_output for v in vectors]
        units = [torch.nn.functional.normalize(v[0], dim=-1) for v in plainly]
        if CLIP_TASKS[number].head == "similarity":
            return (units[0] @ units[1]).view(1).numpy()
        both = CLIP_TASKS[number].pooling == "cls+last"
        return headed(versions[number], served.artifacts[number], torch.cat(units) if both else units[0])

    asked = []
    for number, task in CLIP_TASKS.items():
        for seed in PICTURES:
            image = None if task.encoder.get("image", 0) is None else seed
            asked.append((number, image, None if task.encoder.get("text", 0) is None else TEXTS[seed]))
    random.Random(0).shuffle(asked)
    rows = [(number, row_of(seed, text)) for number, seed, text in asked]
    for what, row, answer in zip(asked, rows, served.answers(rows), strict=True):
        np.testing.assert_allclose(answer, expected(*what), atol=1e-5, err_msg=str(what))
        np.testing.assert_allclose(served.answers([row])[0], expected(*what), atol=1e-5, err_msg=f"{what} alone")


def test_llava_alone_and_mixed(tmp_path: Path) -> None:
    folder = make_llava(tmp_path / "backbone")
    plain, tokenizer = LlavaModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    served = Served(tmp_path, folder)
    tasks = {1: Task(pooling="last"), 2: Task(outputs=2, pooling="last+mean", lora=LORA)}
    versions = {number: served.put(number, task, plain) for number, task in tasks.items()}
    places = (IMAGE_SIZE // 14) ** 2
    asked = [(number, seed) for number in tasks for seed in PICTURES]
    rows = [(number, row_of(seed, TEXTS[seed])) for number, seed in asked]
    for (number, seed), row, answer in zip(asked, rows, served.answers(rows), strict=True):
        ids = [plain.config.image_token_index] * places + tokenizer(TEXTS[seed])["input_ids"]
        model = with_adapter(plain, versions[number])
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids]), pixel_values=pixels(seed)).last_hidden_state[0]
        read = torch.cat([hidden[-1], hidden.mean(0)]) if number == 2 else hidden[-1]
        wanted = headed(versions[number], served.artifacts[number], read)
        np.testing.assert_allclose(answer, wanted, atol=2e-5)
        np.testing.assert_allclose(served.answers([row])[0], wanted, atol=2e-5)
    with pytest.raises(Refused, match="takes an image and a text together"):
        served.put(3, Task(encoder={"text": None}, pooling="last"), None)
    with pytest.raises(Refused, match=r"encoder\.size 28: the backbone sees images of 56 alone"):
        served.put(4, Task(encoder={"image": {"size": 28}}, pooling="last"), None)


def test_zero_shot_labels(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    folder = make_clip(tmp_path / "backbone")
    repository = make_fm_repository(tmp_path / "repository", "clip", folder)
    labels, template = ("film", "book", "good"), "a very {} film"
    sample = [file_of(image) for image in PICTURES.values()]
    result = create_zero_shot(repository, "scene", labels, fm="clip", templates=[template, "the {}"], sample=sample)
    version = repository / "scene" / "1"
    plain, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    served = Served(tmp_path, folder)
    content = read_version(version, version, served.backbone.facts, 8)
    pack(content, tmp_path / "packed.safetensors")
    assert served.worker.load(LoadGeneration(1, "scene", 1, str(tmp_path / "packed.safetensors"))).error is None
    rows = [served.encoder.encode(content.artifact.encoder, row_of(seed, None))[0].tokens for seed in PICTURES]
    answers = answers_of(served.worker.run(RunBatch(1, [1] * 3, rows)), 3)
    for seed, answer in zip(PICTURES, answers, strict=True):
        wanted = []
        for label in labels:
            both = []
            for text in (template.format(label), f"the {label}"):
                with torch.inference_mode():
                    told = plain(pixel_values=pixels(seed), **tokenizer(text, return_tensors="pt"))
                both.append(float(told.logits_per_image[0, 0]))
            wanted.append(max(both))
        np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-4)
    golden = read_golden(version, version, result.artifact, 3)
    assert golden is not None
    asked = [row for one in golden.inputs for row in served.encoder.encode(content.artifact.encoder, one.tensors)]
    compare(
        golden,
        answers_of(served.worker.run(RunBatch(1, [1] * len(asked), [r.tokens for r in asked])), len(asked)),
        "fp32",
    )
    with pytest.raises(InvalidInput, match=r"each has \{\} where the label goes"):
        create_zero_shot(repository, "x", labels, fm="clip", templates=["no place"])
    make_fm_repository(repository, "seeing", make_llava(tmp_path / "llava"))
    with pytest.raises(InvalidInput, match="does not compare images to texts"):
        create_zero_shot(repository, "x", labels, fm="seeing")


def test_a_trained_head_on_both(tmp_path: Path) -> None:
    backbone = Backbone(str(make_clip(tmp_path / "backbone")))
    encoded = backbone.encode([(file_of(PICTURES[seed]), TEXTS[seed]) for seed in PICTURES], None, ImageTextSpec())
    assert backbone.features(encoded, "cls+last").shape == (3, 32)


def test_rows_of_the_client() -> None:
    [made] = chunks(("image", "text"), [(file_of(PICTURES[0]), "a film"), (PICTURES[1], "b")], None, 8)
    assert made["image"].shape == made["text"].shape == (2, 1)
    assert made["text"][1, 0] == b"b"
    with pytest.raises(Exception, match=r"row 0 is of type str; it is \(image, text\)"):
        chunks(("image", "text"), ["a film"], None, 8)
