"""The catalogue's table, for a terminal and for docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from fmplex_tools.catalogue.build import Made
from fmplex_tools.catalogue.entry import Entry
from fmplex_tools.catalogue.specs import FMS, MODALITIES

HEADINGS = (
    "vFM", "what", "modality", "backbone", "adapter", "rows", "metric", "frozen probe", "ours", "bytes", "seconds",
)  # fmt: skip


def cells(entry: Entry, made: Made | None) -> tuple[str, ...]:
    """Of one task's line; dashes where it was not made."""
    what = f"{entry.what} ({entry.note})" if entry.note else entry.what
    known = (entry.name, what, MODALITIES[entry.fm], entry.fm)
    if made is None:
        return (*known, *["–"] * (len(HEADINGS) - len(known)))
    return (
        *known,
        "LoRA" if made.adapter else "–",
        f"{made.rows:,} / {made.test_rows:,}",
        made.metric,
        f"{made.frozen:.3f}",
        f"{made.value:.3f}",
        f"{made.bytes_on_disk:,}",
        f"{made.seconds:.0f}",
    )


def as_table(entries: Sequence[Entry], made: Mapping[str, Made]) -> Table:
    """For a terminal, 80 columns wide: what a task is, `fmplex catalogue list` tells."""
    table = Table("vFM", "backbone", "metric", title="catalogue")
    for heading in ("frozen", "ours", "KB", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        one = made.get(entry.name)
        figures = [] if one is None else [one.metric, f"{one.frozen:.3f}", f"{one.value:.3f}"]
        costs = [] if one is None else [f"{one.bytes_on_disk / 1000:,.0f}", f"{one.seconds:.0f}"]
        table.add_row(entry.name, entry.fm, *(figures + costs or ["–"] * 5))
    return table


def as_markdown(entries: Sequence[Entry], made: Mapping[str, Made]) -> str:
    """A table and what it comes to."""
    there = [entry for entry in entries if entry.name in made]
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(entry, made[entry.name])) + " |" for entry in there]
    seconds = sum(made[entry.name].seconds for entry in there)
    size = sum(made[entry.name].bytes_on_disk for entry in there)
    fms = sorted({entry.fm for entry in there})
    sources = {source for entry in there for source in entry.sources}
    lines.append("")
    lines.append(
        f"{len(there)} tasks on {len(fms)} backbones ({', '.join(f'{fm}: `{FMS[fm]}`' for fm in fms)}), from "
        f"{len(sources)} packages: {size:,} bytes in all, {seconds:,.0f} s of work."
    )
    return "\n".join(lines) + "\n"
