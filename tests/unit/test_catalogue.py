"""The catalogue: what it lists, how it reads data that strangers pickled, and a build that goes on where it stopped."""

from __future__ import annotations

import io
import json
import lzma
import os
import pickle
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fmplex_backend.errors import NotFound, Refused
from fmplex_backend.repository.modalities import TextSpec
from fmplex_tools.catalogue import build as building
from fmplex_tools.catalogue import frames, report, series, specs, text
from fmplex_tools.catalogue.entry import Entry
from fmplex_tools.catalogue.frames import read_frame
from fmplex_tools.sources import IndexSource
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.publish import check_name


def test_what_is_listed() -> None:
    entries = specs.entries()
    assert len(entries) >= 92
    assert {entry.fm for entry in entries.values()} == set(specs.FMS) == set(specs.MODALITIES)
    for name, entry in entries.items():
        check_name(name)
        assert entry.options.encoder.modality == specs.MODALITIES[entry.fm]
        assert entry.sources
    quick = specs.chosen(quick=True)
    assert 18 <= len(quick) <= 26
    assert {specs.MODALITIES[entry.fm] for entry in quick} == {"text", "image", "audio", "series"}


def test_patterns() -> None:
    assert {entry.name for entry in specs.chosen("clothes, digit_*")} == {"clothes", "digit_28", "digit_8"}
    with pytest.raises(NotFound, match="no task of the catalogue fits 'nothing\\*'"):
        specs.chosen("clothes,nothing*")


# ---- tables ----


@contextmanager
def pandas_names() -> Iterator[dict[str, Any]]:
    """Modules of pandas' names, for as long as something is pickled."""
    made: dict[str, Any] = {}
    names = {key: kind for key, kind in frames._KNOWN.items() if key[0].startswith("pandas")}
    for module, name in names:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        stand_in = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, stand_in)
        made[name] = stand_in
    try:
        yield made
    finally:
        for key in [key for key in sys.modules if key == "pandas" or key.startswith("pandas.")]:
            del sys.modules[key]


class Call:
    """Pickled as a call of something by its name."""

    def __init__(self, called: Any, *arguments: Any, state: Any = None) -> None:
        self.called, self.arguments, self.state = called, arguments, state

    def __reduce__(self) -> Any:
        return (self.called, self.arguments) if self.state is None else (self.called, self.arguments, self.state)


def write_frame(path: Path, columns: dict[str, Any]) -> Path:
    with pandas_names() as pandas:
        names = np.array(list(columns), object)
        blocks = tuple(
            Call(pandas["_unpickle_block"], np.array([values]), slice(place, place + 1, 1), 2)
            for place, values in enumerate(columns.values())
        )
        axes = (
            Call(pandas["_new_Index"], pandas["Index"], {"data": names}),
            Call(pandas["_new_Index"], pandas["Index"], {}),
        )
        manager = Call(pandas["BlockManager"], blocks, axes)
        data = io.BytesIO()
        pickle.Pickler(data, 4).dump(Call(pandas["DataFrame"], state={"_mgr": manager}))
    path.write_bytes(lzma.compress(data.getvalue()))
    return path


def test_a_frame_is_read_without_pandas(tmp_path: Path) -> None:
    columns = {"text": np.array(["a", "b"], object), "n": np.array([1.5, np.nan])}
    found = read_frame(write_frame(tmp_path / "table", columns))
    assert list(found) == ["text", "n"]
    assert found["text"] == ["a", "b"]
    assert found["n"][0] == 1.5


@pytest.mark.parametrize("called", [os.system, eval, os.unlink])
def test_nothing_else_is_ever_called(tmp_path: Path, called: Any) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    path = tmp_path / "bad"
    path.write_bytes(lzma.compress(pickle.dumps(Call(called, str(mark)))))
    with pytest.raises(Refused, match=r"bad: it names .*, which no table needs"):
        read_frame(path)
    assert mark.exists()


def test_broken_tables(tmp_path: Path) -> None:
    for data in (b"", b"no xz", lzma.compress(b"no pickle"), lzma.compress(pickle.dumps([1]))):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(Refused, match=r"^bad: "):
            read_frame(tmp_path / "bad")


def test_series_files(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_text("#c\n@univariate false\n@data\n1,2,?:3,NaN:yes\n4,5:6,7,8:no\n")
    rows, labels = series.read_ts(tmp_path / "a.ts")
    assert labels == ["yes", "no"]
    np.testing.assert_array_equal(rows[0], [[1, 2, np.nan], [np.nan, 3, np.nan]])
    np.testing.assert_array_equal(rows[1], [[np.nan, 4, 5], [6, 7, 8]])
    (tmp_path / "b.ts").write_text("@data\n")
    with pytest.raises(Refused, match=r"b\.ts: holds no series"):
        series.read_ts(tmp_path / "b.ts")


def test_word_classes() -> None:
    tags = {
        "nn": "noun", "vbd": "verb", "at": "determiner", "in": "preposition", "jj": "adjective", "ppss": "pronoun",
        "cc": "conjunction", "cd": "number", "rb": "adverb", "*": "not", ".": "other", "fw-nn": "noun", "bez": "verb",
    }  # fmt: skip
    assert {tag: text._word_class(tag) for tag in tags} == tags


# ---- building ----


def _entry(name: str, labels: tuple[str, str] = ("good", "bad")) -> Entry:
    def load() -> Examples:
        if name == "broken":
            raise Refused("its data is not what it was")
        rows = tuple(f"{label} film {number}" for number in range(30) for label in labels)
        return Examples(rows=rows, labels=labels * 30, source="made here")

    source = IndexSource("none", "0", "wheel", None, "none")
    return Entry(name, "film → good or bad", "minilm", (source,), load, TaskOptions(encoder=TextSpec(max_length=16)))


@pytest.fixture
def site(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of three tasks on a small backbone, built by threads of this process."""
    known = {name: _entry(name) for name in ("one", "two", "broken")}
    monkeypatch.setattr(building, "entries", lambda: known)
    monkeypatch.setattr(building, "FMS", {"minilm": str(tiny_backbone)})
    monkeypatch.setattr(building, "fetch", lambda *_: {})
    monkeypatch.setattr(building, "_workers", ThreadPoolExecutor)
    monkeypatch.setattr(building, "_loaded", {})
    return tmp_path / "made" / "repository"


def test_a_build_goes_on_where_it_stopped(site: Path) -> None:
    console = Console(file=io.StringIO())
    wanted = [_entry("one")]
    assert building.build(site, wanted, 1, console) == {}
    first = (site / "one" / "1" / "vfm.json").stat().st_mtime_ns
    wanted = [_entry(name) for name in ("one", "two", "broken")]
    assert building.build(site, wanted, 1, console) == {"broken": "its data is not what it was"}
    assert (site / "one" / "1" / "vfm.json").stat().st_mtime_ns == first, "what is there is left alone"
    made = building.read_results(site)
    assert set(made) == {"one", "two"}
    assert made["one"].value == made["one"].frozen > 0.8
    assert json.loads((site / "one" / "1" / "golden.json").read_text())["inputs"]
    table = report.as_markdown(wanted, made)
    assert table.count("\n| one |") == table.count("\n| two |") == 1
    assert "broken" not in table


def test_what_cannot_be_fetched_fails_its_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(self: IndexSource, progress: Any = None) -> Path:
        raise NotFound(f"no package {self.package}")

    monkeypatch.setattr(IndexSource, "fetched", property(lambda self: self.package == "here"))
    monkeypatch.setattr(IndexSource, "folder", folder)
    here, gone = (IndexSource(name, "1", "wheel", None, "none") for name in ("here", "gone"))
    wanted = [
        Entry(name, "", "minilm", (source,), lambda: Examples(rows=()), TaskOptions())
        for name, source in (("a", here), ("b", gone), ("c", gone))
    ]
    told = building.fetch(wanted, Console(file=io.StringIO()))
    assert told == dict.fromkeys(("b", "c"), "no package gone")
