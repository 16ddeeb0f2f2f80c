"""``fmplex bench engine mixed``: adapters of many vFMs in one batch, against the bare backbone and against PEFT."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.repository.config import fm_settings
from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    Device,
    Dtype,
    JsonFile,
    PlotsTo,
    Repository,
    Seconds,
    Seed,
    Threads,
    carry_out,
    compute_as_an_engine,
    machine,
)
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.engine.rounds import Tick, at_least, at_most, interleave, ratio
from fmplex_tools.bench.fair.bench import Figure, Outcome

if TYPE_CHECKING:
    from fmplex_backend.backbones.base import Backbone

SAME = 1e-5
"""Largest difference in fp32 between a row's answer in a mixed batch and alone."""


@dataclass(frozen=True)
class Kind:
    """A kind of adapter, and the most it may cost relative to the bare backbone."""

    title: str
    rank: int
    targets: tuple[str, ...]
    one: float | None
    """× bare, one adapter for all rows."""
    many: float
    """× bare, as many adapters as rows."""
    peft: float
    """Times as fast as PEFT, at least."""


KINDS = (
    Kind("rank 8 on query, value", 8, ("query", "value"), 1.02, 1.10, 2.0),
    Kind("rank 16 on all linear layers", 16, (), None, 1.25, 4.0),
)


def mixed(
    seconds: Seconds = 30.0,
    rows: Annotated[int, typer.Option(min=1, max=1024, help="In the batch.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, max=512, help="Of each row.")] = 32,
    dtype: Annotated[Dtype, typer.Option(help="Of the backbone.")] = "fp32",
    device: Device = "cpu",
    threads: Threads = 0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Time one batch with 1, 4, 16 and 64 distinct adapters against the bare backbone, PEFT, and a pass per adapter.

    In this process, without a server, on the backbone of the physical FM `minilm`. All contenders run by turns for
    --seconds per kind of adapter and do the same work, token ids to vectors; a figure is the median of the ratios of
    one round. Adapters against as many bare vFMs is what adapters cost; the plain forward has no vFMs at all. Then
    checks that LoRA, DoRA and IA3 in one batch answer what each does alone.

    Examples:

      fmplex bench engine mixed

      fmplex bench engine mixed --dtype bf16 --rows 16 --tokens 128 --seconds 10

      fmplex bench engine mixed --json mixed.json --plots docs/plots
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        line = progress.add_task("loading the backbone", total=1.0)
        compute_as_an_engine(device, threads)
        spec = fm_settings(repository / FM).backbone
        noted |= machine(device)
        return measure_mixed(spec, dtype, device, rows, tokens, seconds, seed, progress, line)

    conditions = {"dtype": dtype, "device": device, "rows": rows, "tokens": tokens, "seconds": seconds, "seed": seed}
    carry_out("mixed", measure, conditions, json_file, plots_to)


def measure_mixed(
    spec: str,
    dtype: str,
    device: str,
    rows: int,
    tokens: int,
    seconds: float,
    seed: int,
    progress: Progress,
    line: Any,
) -> Outcome:
    """All kinds of adapters on the backbone ``spec``, and the check of answers. ``line`` is of ``progress``."""
    from fmplex_backend.backbones.registry import load_backbone

    # One of them is never hooked.
    backbone, plain = (load_backbone(spec, dtype, device) for _ in range(2))
    outcome = Outcome(details={SERIES: {}, "seconds": {}})
    for kind in KINDS:
        progress.update(line, description=f"{kind.title}: making the adapters", completed=0.0)

        def tick(part: float, kind: Kind = kind) -> None:
            progress.update(line, description=kind.title, completed=part)

        _measure_kind(outcome, kind, (backbone, plain), rows, tokens, seconds, seed, tick)
    progress.update(line, description="LoRA, DoRA and IA3 in one batch")
    from fmplex_tools.bench.engine.sameness import sameness

    outcome.figures += sameness(backbone, plain, tokens, seed, SAME if dtype == "fp32" else None)
    return outcome


def _measure_kind(
    outcome: Outcome,
    kind: Kind,
    backbones: tuple[Backbone, Backbone],
    rows: int,
    tokens: int,
    seconds: float,
    seed: int,
    tick: Tick,
) -> None:
    from fmplex_tools.bench.engine.adapters import AdapterSpec
    from fmplex_tools.bench.engine.contenders import Field

    field = Field(*backbones, AdapterSpec(kind.rank, kind.targets), rows, tokens, seed)
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
            field.load(Path(folder))
        times = interleave(field.contenders(), seconds, on_tick=tick)
        alone, theirs, without = field.differences()
    finally:
        field.close()
    outcome.figures += figures_of(kind, times, field.counts)
    good = alone <= SAME if next(backbones[0].model.parameters()).dtype.itemsize == 4 else None
    goal = f"≤ {SAME:g}" if good is not None else ""
    outcome.figures.append(Figure(kind.title, "largest difference, mixed to alone", alone, "", goal, good))
    outcome.figures.append(Figure(kind.title, "largest difference to PEFT", theirs))
    outcome.figures.append(Figure(kind.title, "largest difference to no adapter", without))
    outcome.details["seconds"][kind.title] = times
    outcome.details[SERIES][f"{kind.title}, ms"] = {name: [1e3 * t for t in found] for name, found in times.items()}


def figures_of(kind: Kind, times: Mapping[str, list[float]], counts: tuple[int, ...]) -> list[Figure]:
    """The lines of one kind of adapter; ``times`` of `Field.contenders`."""
    from fmplex_tools.bench.engine.contenders import BARE_VFM, BY_ADAPTER, PEFT, PLAIN, adapters, bare_vfms

    most = counts[-1]
    many, as_many_bare = times[adapters(most)], times[bare_vfms(most)]
    found = [
        Figure(kind.title, f"{PLAIN}, least", 1e3 * min(times[PLAIN]), f"ms (of {len(times[PLAIN])} rounds)"),
        at_most(kind.title, f"{BARE_VFM} / plain forward", ratio(times[BARE_VFM], times[PLAIN])),
    ]
    for count in counts:
        goal = {1: kind.one, most: kind.many}.get(count)
        if count == most:
            named = f"{adapters(count)} / {bare_vfms(count)}"
            found.append(at_most(kind.title, named, ratio(many, as_many_bare), goal))
            named = f"{adapters(count)} / plain forward"
            found.append(at_most(kind.title, named, ratio(many, times[PLAIN])))
        else:
            named = f"{adapters(count)} / {BARE_VFM}"
            found.append(at_most(kind.title, named, ratio(times[adapters(count)], times[BARE_VFM]), goal))
    found.append(at_least(kind.title, f"{PEFT} / {adapters(most)}", ratio(times[PEFT], many), kind.peft))
    found.append(at_least(kind.title, f"{BY_ADAPTER} / {adapters(most)}", ratio(times[BY_ADAPTER], many)))
    return [figure for figure in found if math.isfinite(figure.value)]
