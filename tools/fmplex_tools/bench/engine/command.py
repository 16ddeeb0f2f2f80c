"""What every scenario's subcommand shares: its options, and the way from measuring to the exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_tools.bench.engine.report import as_json, plots, table
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.console import DEFAULT_REPOSITORY, err, fail, out
from fmplex_tools.files import write_whole

Seconds = Annotated[float, typer.Option("--seconds", min=0.2, max=3600, help="Measuring time; see above of what.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of weights and texts.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write figures and what they are made of here.")]
PlotsTo = Annotated[Path | None, typer.Option("--plots", help="Folder to draw plots into.", file_okay=False)]
Repository = Annotated[Path, typer.Option("--repository", "-r", help="Where the physical FM is described; only read.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Compute threads; 0 is every core.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda:N.")]
Dtype = Literal["fp32", "bf16"]
_Number = TypeVar("_Number", int, float)
REPOSITORY = DEFAULT_REPOSITORY
FM = "minilm"
"""The demo's physical FM."""


def carry_out(
    name: str,
    measure: Callable[[Progress, dict[str, Any]], Outcome],
    conditions: Mapping[str, Any],
    json_file: Path | None,
    plots_to: Path | None,
) -> None:
    """Measure, print the table, write what was asked for; the exit code is 1 where a goal is missed.

    ``measure`` notes in the dictionary, which holds ``conditions``, what the machine is: see `machine`.
    """
    noted: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), **conditions}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        # Few refreshes: what is measured wants the cores.
        with _orderly(), Progress(*columns, console=err, transient=True, refresh_per_second=2) as progress:
            outcome = measure(progress, noted)
    except FMplexError as error:
        fail(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("stopped; no process is left")
        raise typer.Exit(130) from None
    out.print(table(outcome, title(name, noted)))
    if json_file is not None:
        write_whole(json_file, as_json(outcome, noted))
    if plots_to is not None:
        for file in plots(name, outcome, plots_to):
            out.print(f"drawn: {file}")
    if any(figure.good is False for figure in outcome.figures):
        raise typer.Exit(1)


@contextlib.contextmanager
def _orderly() -> Iterator[None]:
    """SIGTERM ends a benchmark as Ctrl-C does, with every process that it has started."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def title(name: str, noted: Mapping[str, Any]) -> str:
    """The table's head: the scenario, the machine and all conditions."""
    machine_first = [key for key in ("machine", "cores", "torch_threads", "software") if key in noted]
    rest = [key for key in noted if key not in machine_first]
    told = [f"{key.replace('_', ' ')} {noted[key]}" for key in machine_first[1:] + rest]
    return f"{name}: " + ", ".join([str(noted[key]) for key in machine_first[:1]] + told)


def machine(device: str) -> dict[str, Any]:
    """What this process computes on, for the conditions. Imports torch."""
    from fmplex_backend.engine.measuring import device_facts

    facts = device_facts(device)
    return {"machine": facts.name, "torch_threads": facts.threads, "software": facts.software}


def compute_as_an_engine(device: str, threads: int) -> None:
    """Give torch in this process the threads, and OpenMP the manners, that an engine has; best before torch loads."""
    from fmplex_backend.host.engine_environment import engine_environment

    if "torch" not in sys.modules:
        os.environ.update(engine_environment())
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if device == "cpu":
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def numbers(text: str, option: str, least: _Number, most: _Number) -> list[_Number]:
    """``1,16,64`` as numbers such as ``least``, each once. Raises `InvalidInput` naming ``option``."""
    number_of = type(least)
    try:
        found = [number_of(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(least <= number <= most for number in found):
        raise InvalidInput(f"{option} is {text!r}; give numbers from {least} to {most}, comma-separated")
    return list(dict.fromkeys(found))


def choices(text: str, option: str, known: Sequence[str]) -> list[str]:
    """``fp32,bf16`` as words, each once. Raises `InvalidInput` naming ``option``."""
    found = text.split(",")
    if not set(found) <= set(known):
        raise InvalidInput(f"{option} is {text!r}; known are {', '.join(known)}, comma-separated")
    return list(dict.fromkeys(found))
