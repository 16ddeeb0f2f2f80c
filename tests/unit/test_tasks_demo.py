"""The demo's specification, without fetching or training anything: what the README promises of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_backend.errors import NotFound
from fmplex_backend.repository.config import Policy
from fmplex_tools.demo import BUNDLES, DEMO, held_out, missing
from fmplex_tools.demo.datasets import SOURCES, clean


def test_the_demo_has_the_kinds_and_adapters_that_are_promised() -> None:
    classifiers = [task for task in DEMO if task.options.kind == "classification"]
    assert len(DEMO) >= 8
    assert sum(task.options.lora is None for task in classifiers) >= 2
    ranks = {task.options.lora.rank for task in classifiers if task.options.lora is not None}
    layers = {task.options.lora.layers for task in classifiers if task.options.lora is not None}
    assert len(ranks) >= 3
    assert len(layers) >= 3
    assert {task.options.kind for task in DEMO} >= {"multi_label", "regression", "embedding"}


def test_its_policies_encoders_and_bundles_hold_together() -> None:
    names = [task.name for task in DEMO]
    assert len(set(names)) == len(names)
    for task in DEMO:
        Policy.parse(task.parameters, task.name)
    for bundle in BUNDLES:
        assert set(bundle.members) <= set(names)
    assert len({task.options.encoder for task in DEMO}) >= 4
    assert {task.source for task in DEMO} == set(SOURCES)
    assert all(len(source.sha256) == 64 and source.licence for source in SOURCES)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert missing(tmp_path) == [spec.name for spec in (*DEMO, *BUNDLES)]
    (tmp_path / "news_topic").mkdir()
    (tmp_path / "news_topic" / "config.pbtxt").touch()
    assert "news_topic" not in missing(tmp_path)
    with pytest.raises(NotFound, match="no demo vFM 'x'"):
        held_out("x")


def test_texts_are_cut_and_collapsed() -> None:
    assert clean("  a \n b\t") == "a b"
    assert len(clean("word " * 1000)) <= 1000
