"""Reading data, finding kinds, and splitting honestly: the parts of task making that are plain functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_tools.tasks.data import Columns, Examples, read_examples
from fmplex_tools.tasks.kinds import check_labels, detect_kind, drop_rare, encode, label_names
from fmplex_tools.tasks.options import LoraOptions, TaskOptions
from fmplex_tools.tasks.prepare import prepare_data
from fmplex_tools.tasks.rows import row_key
from fmplex_tools.tasks.split import cap, join_test, split, strata_of, stratified

ROWS = [{"text": f"text number {i}", "label": "ab"[i % 2]} for i in range(20)]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        lines = [comma.join(rows[0]), *(comma.join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    examples = read_examples(_write(tmp_path / f"data.{ending}", ROWS), Columns("text", "label"))
    assert examples.rows == tuple(row["text"] for row in ROWS)
    assert examples.labels == tuple(row["label"] for row in ROWS)


def test_a_label_called_na_is_a_label(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"one, two",NA\nthree,null\n')
    assert read_examples(path, Columns("text", "label")).labels == ("NA", "null")


@pytest.mark.parametrize(
    ("content", "columns", "error", "says"),
    [
        (
            "text,label\na,b\n",
            Columns("body", "label"),
            NotFound,
            "no column 'body' (--text); its columns are label, text",
        ),
        ("text,label\na,b\n,c\n", Columns("text", "label"), InvalidInput, "column 'text' has no text in row 2"),
        ("text,label\na,b\nb,\n", Columns("text", "label"), InvalidInput, "column 'label' has no label in row 2"),
        ("text,label\na,b,c\n", Columns("text", "label"), InvalidInput, "row 1 has 3 fields, the header 2"),
        ("text,label\n", Columns("text", "label"), InvalidInput, "holds no rows"),
        ("", Columns("text", "label"), InvalidInput, "empty"),
        ("text,text\na,b\n", Columns("text"), InvalidInput, "names a column twice"),
        ("text,side\na,train\nb,dev\n", Columns("text", split="side"), InvalidInput, "row 2 says 'dev'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, columns: Columns, error: type[Exception], says: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(error) as caught:
        read_examples(path, columns)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_endings_encodings_and_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "data.xls").write_text("x")
    (tmp_path / "latin.csv").write_bytes(b"text\n\xe9\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(NotFound, match="no such file"):
        read_examples(tmp_path / "none.csv", Columns("text"))
    with pytest.raises(InvalidInput, match=r"unknown ending '\.xls'"):
        read_examples(tmp_path / "data.xls", Columns("text"))
    with pytest.raises(InvalidInput, match="not UTF-8 at byte 5"):
        read_examples(tmp_path / "latin.csv", Columns("text"))
    with pytest.raises(InvalidInput, match="line 2 is not JSON"):
        read_examples(tmp_path / "broken.jsonl", Columns("text"))


def _examples(labels: list[object] | None, words: list[tuple[str, ...]] | None = None) -> Examples:
    count = len(labels or words or "abcd")
    texts = tuple(f"text {i}" for i in range(count))
    return Examples(texts, None if labels is None else tuple(labels), words=None if words is None else tuple(words))


@pytest.mark.parametrize(
    ("examples", "kind"),
    [
        (_examples(None), "embedding"),
        (_examples(["a", "b", "a"]), "classification"),
        (_examples(["1", "2", "1"]), "classification"),
        (_examples([str(i) for i in range(30)]), "regression"),
        (_examples([0.5, 0.25, 0.125, 1.5, 2.5, 3.5]), "regression"),
        (_examples([True, False]), "classification"),
        (_examples(["a|b", "a", "b"]), "multi_label"),
        (_examples([("a", "b"), ("a",)]), "multi_label"),
        (_examples([("N", "V"), ("N",)], [("dogs", "run"), ("cats",)]), "token_classification"),
        (_examples([("N",), ("N",)], [("dogs", "run"), ("cats",)]), "multi_label"),
    ],
)
def test_kinds_are_found_from_the_labels(examples: Examples, kind: str) -> None:
    assert detect_kind(examples) == kind


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60))
def test_few_whole_numbers_are_classes(labels: list[int]) -> None:
    assert detect_kind(_examples(list(labels))) == "classification"


@given(st.sets(st.floats(-1e6, 1e6, allow_nan=False), min_size=21, max_size=40))
def test_many_numbers_are_a_regression(labels: set[float]) -> None:
    assert detect_kind(_examples(list(labels))) == "regression"


def test_labels_become_numbers() -> None:
    multi = _examples(["b|a", "", "c"])
    names = label_names("multi_label", multi)
    assert names == ("a", "b", "c")
    values = encode("multi_label", multi, names).values
    assert values is not None
    assert values.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("bad", ["abc", "nan", "inf", ""])
def test_a_target_that_is_no_number_is_named(bad: str) -> None:
    with pytest.raises(InvalidInput, match=r"needs finite numbers.*row 2"):
        encode("regression", _examples([1.0, bad, 2.0]), ("value",))


def test_too_few_rows_of_a_label_are_named_with_the_remedy() -> None:
    examples = _examples(["a", "a", "b"])
    with pytest.raises(InvalidInput, match=r"'b' has only 1.*--min-label-rows 2"):
        check_labels("classification", examples)
    assert drop_rare("classification", examples, 2).labels == ("a", "a")
    with pytest.raises(InvalidInput, match="at least 2 labels"):
        check_labels("classification", _examples(["a", "a"]))


TEXTS = st.lists(
    st.tuples(st.sampled_from(["x", "X ", "y", " y", "z z", "Z  z", "w", "v", "u", "t"]), st.sampled_from("ab")),
    min_size=12,
    max_size=60,
)


@given(TEXTS, st.integers(0, 5))
def test_no_text_is_on_both_sides(rows: list[tuple[str, str]], seed: int) -> None:
    examples = Examples(tuple(text for text, _ in rows), tuple(label for _, label in rows))
    strata = strata_of("classification", examples.labels, len(examples), "|")
    try:
        result = split(examples, strata, seed=seed)
    except InvalidInput:
        return  # too few distinct texts for two sides
    train = {row_key(examples.rows[row]) for row in result.train}
    test = {row_key(examples.rows[row]) for row in result.test}
    assert not train & test
    assert len(train) == len(result.train)
    assert len(result.train) + len(result.test) + result.duplicates == len(examples)
    assert result == split(examples, strata, seed=seed)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=200), st.integers(0, 9))
def test_every_label_keeps_its_share(labels: list[str], seed: int) -> None:
    train, test = stratified(range(len(labels)), labels, seed, 0.2)
    assert sorted(train + test) == list(range(len(labels)))
    for label in set(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        held = sum(row in test for row in rows)
        assert held == (0 if len(rows) == 1 else min(max(round(0.2 * len(rows)), 1), len(rows) - 1))


@given(st.lists(st.sampled_from("ab"), min_size=10, max_size=100), st.integers(4, 10))
def test_a_cap_keeps_shares(labels: list[str], most: int) -> None:
    kept = cap(range(len(labels)), labels, most, 0)
    assert len(kept) == most
    share = labels.count("a") / len(labels)
    assert abs(sum(labels[row] == "a" for row in kept) - share * most) <= 1


def test_groups_and_given_sides_are_kept() -> None:
    texts = tuple(f"t{i}" for i in range(20))
    grouped = Examples(texts, ("a", "b") * 10, groups=tuple(str(i // 4) for i in range(20)))
    result = split(grouped, ["a"] * 20)
    assert len(result.test) == 4
    assert len({row // 4 for row in result.test}) == 1
    train, test = Examples(("a", "b", "c"), (1, 2, 3)), Examples(("B ", "d"), (2, 4))
    given_sides = split(join_test(train, test), [0] * 5)
    assert (given_sides.train, given_sides.test, given_sides.duplicates) == ((0, 2), (3, 4), 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoraOptions(rank=0), "--rank 0"),
        (lambda: LoraOptions(layers=(-1,)), "--layers"),
        (lambda: TaskOptions(threshold=1.5), "--threshold 1.5"),
        (lambda: TaskOptions(max_rows=0), "--max-rows 0"),
        (lambda: prepare_data(_examples(["a", "b"] * 5), TaskOptions(dimensions=4)), "--dimensions is for embeddings"),
        (lambda: prepare_data(_examples(["a", "b"] * 5), TaskOptions(pooling="none")), "--pooling none"),
        (lambda: prepare_data(_examples(None), TaskOptions(kind="classification")), "needs a label column"),
        (lambda: prepare_data(_examples(None), TaskOptions(lora=LoraOptions())), "trained by its labels"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: object, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()  # type: ignore[operator]
    assert says in str(caught.value)
