"""Golden rows: the file, the comparison, and that the tools write what plain transformers and the engine answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.facts import backbone_of
from support.recipes import RECIPES, Recipe, artifact_of, width_of, write_version
from support.reference import Reference

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.messages import LoadGeneration, RunBatch
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.golden import GOLDEN_FILE, MAX_BYTES, Golden, GoldenRow, compare, read_golden
from fmplex_backend.repository.packed import pack, read_version
from fmplex_tools.tasks.artifact_writer import write_golden
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.golden import make_golden

GOOD: dict[str, Any] = {
    "format": 1,
    "inputs": [{"text": "good film"}, {"text": "bad"}],
    "outputs": [[0.1, -2.0], [1, 0.5]],
    "dtype": "fp32",
    "made_with": {"torch": "2.9"},
}


def texts_of(golden: Golden | None) -> tuple[list[str], list[str] | None]:
    """Texts and pairs."""
    assert golden is not None
    pairs = [row.text_pair for row in golden.inputs if row.text_pair is not None]
    return [row.text or "" for row in golden.inputs], pairs or None


def artifact(recipe: str, backbone: Path) -> Artifact:
    return artifact_of(RECIPES[recipe], backbone)


def read(folder: Path, content: Any, artifact: Artifact, width: int = 2) -> Golden | None:
    (folder / "1").mkdir(exist_ok=True)
    (folder / "1" / GOLDEN_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_golden(folder / "1", folder, artifact, width)


# ---- the file ----


def test_a_good_file(tmp_path: Path, tiny_backbone: Path) -> None:
    golden = read(tmp_path, GOOD, artifact("bare_two", tiny_backbone))
    assert golden is not None
    assert [(row.text, row.text_pair) for row in golden.inputs] == [("good film", None), ("bad", None)]
    assert [row.tolist() for row in golden.arrays] == [[np.float32(0.1), -2.0], [1.0, 0.5]]


def test_no_file_is_none(tmp_path: Path, tiny_backbone: Path) -> None:
    assert read_golden(tmp_path, tmp_path, artifact("bare_two", tiny_backbone), 2) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outputs": [[0.1, -2.0]]}, "there are 2 'inputs', but 1 'outputs'"),
        ({"outputs": [[0.1, -2.0], [1.0]]}, r"outputs.1 has shape \[1\]; with this artifact \[2\]"),
        ({"outputs": [[0.1, -2.0], [[1.0, 2.0]]]}, r"outputs.1 has shape \[1, 2\]; with this artifact \[2\]"),
        (
            {"outputs": [[0.1, -2.0], [[1.0, 2.0], [1.0]]]},
            "'outputs.1' is neither a list of finite numbers nor a table",
        ),
        ({"outputs": [[0.1, -2.0], [1.0, float("nan")]]}, "'outputs.1' is neither"),
        ({"outputs": [[0.1, -2.0], [1.0, float("inf")]]}, "'outputs.1' is neither"),
        ({"outputs": [[0.1, -2.0], [1.0, 1e39]]}, "'outputs.1' is neither"),
        ({"outputs": [[0.1, -2.0], [True, 1.0]]}, "'outputs.1' is neither"),
        ({"outputs": [[0.1, -2.0], ["1.0", 1.0]]}, "'outputs.1' is neither"),
        ({"outputs": [[0.1, -2.0], []]}, "'outputs.1' is neither"),
        ({"inputs": [], "outputs": []}, "at least 1 item"),
        ({"inputs": [{"text": "a"}] * 5, "outputs": [[0.0, 0.0]] * 5}, "at most 4 items"),
        ({"inputs": [{"text": "a"}, {"text": 3}]}, "key 'inputs.1.text' is 3"),
        ({"inputs": [{"text": "a"}, {"text": "b", "text_pair": "c"}]}, "either all have a 'text_pair' or none has"),
        (
            {"inputs": [{"text": "a", "text_pair": "b"}] * 2},
            r"its inputs are \['text', 'text_pair'\]; the encoder reads \['text'\]",
        ),
        ({"dtype": "bf16"}, "key 'dtype' is 'bf16'"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_what_is_refused(tmp_path: Path, tiny_backbone: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        read(tmp_path, GOOD | changes, artifact("bare_two", tiny_backbone))


def test_pairs_and_tables(tmp_path: Path, tiny_backbone: Path) -> None:
    pair = {"inputs": [{"text": "a", "text_pair": "b"}], "outputs": [[1, 2, 3]]}
    assert read(tmp_path, pair, artifact("pair", tiny_backbone), 3) is not None
    with pytest.raises(Refused, match=r"its inputs are \['text'\]; the encoder reads \['text', 'text_pair'\]"):
        read(tmp_path, GOOD, artifact("pair", tiny_backbone))
    table = {"inputs": [{"text": "a"}], "outputs": [[[1, 2], [3, 4]]]}
    assert read(tmp_path, table, artifact("tokens", tiny_backbone), 2) is not None
    with pytest.raises(Refused, match=r"outputs.0 has shape \[2\]; with this artifact \[tokens, 2\]"):
        read(tmp_path, GOOD, artifact("tokens", tiny_backbone))


def test_only_small_files_inside_the_folder(tmp_path: Path, tiny_backbone: Path) -> None:
    kind = artifact("bare_two", tiny_backbone)
    with pytest.raises(Refused, match=f"the limit is {MAX_BYTES}"):
        read(tmp_path, json.dumps(GOOD) + " " * MAX_BYTES, kind)
    for broken in ("{", "[]", "3"):
        with pytest.raises(Refused, match=GOLDEN_FILE):
            read(tmp_path, broken, kind)
    (tmp_path / "elsewhere.json").write_text(json.dumps(GOOD))
    vfm = tmp_path / "vfm"
    (vfm / "1").mkdir(parents=True)
    (vfm / "1" / GOLDEN_FILE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(Refused, match="leads out of the vFM's folder"):
        read_golden(vfm / "1", vfm, kind, 2)


# ---- the comparison ----


def golden(*outputs: Any) -> Golden:
    return Golden(inputs=tuple(GoldenRow(text="a") for _ in outputs), outputs=outputs)


@pytest.mark.parametrize(("dtype", "off"), [("fp32", 1e-3), ("fp16", 1e-2), ("bf16", 8e-2)])
def test_tolerance_is_a_part_of_the_largest_number(dtype: str, off: float) -> None:
    asked = golden([0.0, 4.0], [0.5, -1.0])
    near = [np.array([0.0, 4.0]), np.array([0.5 + 3.9 * off, -1.0])]
    compare(asked, near, dtype)
    far = [near[0], np.array([0.5, -1.0 - 4.1 * off])]
    with pytest.raises(Refused, match=rf"input 1 answers \[.*\] instead of \[0.5, -1\].*tolerance .* in {dtype}"):
        compare(asked, far, dtype)


def test_comparison_of_shapes_and_of_no_numbers() -> None:
    with pytest.raises(Refused, match=r"answered in shape \[3\] instead of \[2\]"):
        compare(golden([1.0, 2.0]), [np.zeros(3)], "fp32")
    with pytest.raises(Refused, match="largest difference nan"):
        compare(golden([1.0, 2.0]), [np.array([1.0, np.nan])], "fp32")
    compare(golden([0.0, 0.0]), [np.array([1e-6, 0.0])], "fp32")


def test_rows_by_token_may_be_padded() -> None:
    asked = golden([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]])
    padded = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0], [0.0, 0.0]])]
    compare(asked, padded, "fp32")
    compare(asked, [padded[0], padded[1][:1]], "fp32")
    padded[1][1] = 1.0
    with pytest.raises(Refused, match=r"answers \[1, 1\] instead of \[0, 0\]"):
        compare(asked, padded, "fp32")
    with pytest.raises(Refused, match=r"in shape \[3, 2\] instead of \[2, 2\]"):
        compare(asked, [np.zeros((3, 2)), padded[1]], "fp32")


# ---- made by the tools ----

TEXTS = ("good film", "the book was not very good, it is a bad book", "not a film", "very bad")


@pytest.fixture(scope="session")
def backbone(tiny_backbone: Path) -> Backbone:
    return Backbone(str(tiny_backbone))


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_is_plain_peft_and_what_the_engine_answers(
    tmp_path: Path, tiny_backbone: Path, backbone: Backbone, name: str
) -> None:
    recipe = RECIPES[name]
    pairs = TEXTS[::-1] if recipe.encoder.get("pair") else None
    version = write_version(tmp_path / "vfm" / "1", recipe, tiny_backbone, seed=3)
    made = artifact(name, tiny_backbone)
    write_golden(version, make_golden(version, made, backbone, TEXTS, pairs))
    read = read_golden(version, tmp_path / "vfm", made, width_of(recipe, tiny_backbone))
    assert read is not None
    plain = Reference(version, tiny_backbone)(*texts_of(read))
    for written, row in zip(read.arrays, plain, strict=True):
        np.testing.assert_allclose(written, row, atol=1e-6, rtol=1e-5)
    compare(read, _engine(version, tiny_backbone, read), "fp32")


def _engine(version: Path, backbone: Path, golden: Golden) -> list[Any]:
    shared = backbone_of(backbone)
    content = read_version(version, version.parent, shared.facts, 64)
    pack(content, version / "packed.safetensors")
    worker = Worker(shared, "cpu", 4)
    assert worker.load(LoadGeneration(1, "x", 1, str(version / "packed.safetensors"))).error is None
    rows = TextEncoder(shared.facts).encode_texts(content.artifact.encoder, *texts_of(golden))
    (group,) = worker.run(RunBatch(1, [1] * len(rows), [row.tokens for row in rows])).groups
    worker.drop(1)
    worker.close()
    columns = group.columns["vector" if "vector" in group.columns else "matrix"]
    return [columns[group.rows.index(place)] for place in range(len(rows))]


def test_rows_are_short_different_and_have_large_numbers(
    tmp_path: Path, tiny_backbone: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmplex_tools.tasks.golden.MAX_TOKENS", 20)
    recipe = Recipe(outputs=3)
    version = write_version(tmp_path / "1", recipe, tiny_backbone)
    made = artifact_of(recipe, tiny_backbone)
    long = "film " * 30
    texts = [long, "good", "good", "bad film", "a book", *TEXTS]
    chosen = make_golden(version, made, backbone, texts)
    assert len(set(texts_of(chosen)[0])) == 2
    assert long not in texts_of(chosen)[0]
    largest = max(np.abs(row).max() for row in Reference(version, tiny_backbone)(texts[1:]))
    assert max(np.abs(row).max() for row in chosen.arrays) == pytest.approx(largest, rel=1e-5)
    assert texts_of(make_golden(version, made, backbone, [long + "x", long]))[0] == [long]
    with pytest.raises(InvalidInput, match="none of 1 texts"):
        make_golden(version, made, backbone, [" "])
    monkeypatch.undo()
    assert len(make_golden(version, made, backbone).inputs) == 2, "without data there are texts of our own"
