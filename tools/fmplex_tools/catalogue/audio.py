"""Sound: prompts of a telephone exchange in five languages, and letters spoken in many."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmplex_backend.errors import Refused
from fmplex_backend.repository.modalities import AudioSpec
from fmplex_tools.catalogue.entry import Entry, Probe
from fmplex_tools.sources import DebianSource
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.rows import Sound

FM, BASE = "whisper", "whisper_base"
RATE = 16_000
SECONDS = 4.0
MOST_ROWS, LEAST_PER_LABEL = 1200, 20
SMALLEST = 6000
"""Bytes of a recording: less is hardly a word."""
LANGUAGES = ("en", "es", "fr", "it", "ru")
PROMPTS = {
    language: DebianSource(f"asterisk-core-sounds-{language}-wav", "1.6.1-1", "CC-BY-SA-3.0") for language in LANGUAGES
}
LETTERS = DebianSource("klettres-data", "4:22.12.3-1", "GPL-2")


def read_sound(path: Path) -> Sound:
    """A file of any format that libsndfile reads, channels mixed, at `RATE`. Raises `Refused`."""
    import soundfile
    from scipy.signal import resample_poly

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise Refused(f"{path.name}: no sound: {error}") from None
    mixed: NDArray[np.float32] = samples.mean(1)
    if rate != RATE:
        common = math.gcd(rate, RATE)
        mixed = resample_poly(mixed, RATE // common, rate // common).astype(np.float32)
    return Sound(mixed[: round(SECONDS * RATE)].clip(-1, 1), RATE)


def _chosen(labelled: list[tuple[Path, str]], source: str, label_name: str) -> Examples:
    """A part of the recordings, in a fixed random order; labels with few are left out."""
    counts = Counter(label for _, label in labelled)
    kept = [one for one in labelled if counts[one[1]] >= LEAST_PER_LABEL]
    order = random.Random(0).sample(range(len(kept)), min(MOST_ROWS, len(kept)))
    rows = tuple(read_sound(kept[place][0]) for place in order)
    labels = tuple(kept[place][1] for place in order)
    return Examples(rows=rows, labels=labels, source=source, label_name=label_name)


def prompts(what: str) -> Examples:
    """Recordings of a telephone exchange: their ``language``, or the ``type`` of what is said."""
    labelled = []
    for language, source in PROMPTS.items():
        for path in sorted(source.folder().rglob("*.wav")):
            if "/silence/" in str(path) or path.stat().st_size < SMALLEST:
                continue
            folder = path.parent.name
            kind = folder if folder in ("digits", "letters", "phonetic") else path.name.split("-")[0]
            labelled.append((path, language if what == "language" else kind))
    return _chosen(labelled, PROMPTS["en"].cite("prompts in five languages"), what)


def letters(what: str) -> Examples:
    """Letters and syllables: the ``language``, or the ``kind`` (letter or syllable)."""
    root = LETTERS.folder() / "usr" / "share" / "klettres"
    labelled = []
    for path in sorted(root.rglob("*.ogg")):
        language = path.relative_to(root).parts[0]
        labelled.append((path, language if what == "language" else path.parent.name))
    return _chosen(labelled, LETTERS.cite("spoken letters"), what)


def entries() -> Iterable[Entry]:
    """All of them."""
    options = TaskOptions(kind="classification", pooling="mean+std", encoder=AudioSpec(seconds=SECONDS))
    voices = "one voice a language, so it may be the voice that is told"
    phone = tuple(PROMPTS.values())
    for name, what, load, sources, probe, quick, note in (
        ("prompt_language", "telephone prompt → which of 5 languages", partial(prompts, "language"), phone, 0.93, True,
         voices),
        ("prompt_type", "telephone prompt → what kind of prompt", partial(prompts, "type"), phone, 0.52, False, ""),
        ("letter_language", "spoken letter → which language", partial(letters, "language"), (LETTERS,), 0.90, True,
         voices),
        ("letter_or_syllable", "recording → letter or syllable", partial(letters, "kind"), (LETTERS,), 0.80, True, ""),
    ):  # fmt: skip
        fm = BASE if name == "prompt_type" else FM
        yield Entry(name, what, fm, sources, load, options, Probe("accuracy", probe), quick, note)
