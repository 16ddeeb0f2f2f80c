"""Building the catalogue: fetch, then one vFM after the other, each published whole.

What is there is left alone, so that a run that was stopped goes on where it was. A task that cannot be made (its data
is not to be had here, say) is told at the end, and the others are made.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from fmplex_backend.errors import FMplexError
from fmplex_backend.repository.layout import model_dirs, physical_fms
from fmplex_tools.catalogue.entry import Entry
from fmplex_tools.catalogue.specs import FMS, entries
from fmplex_tools.fetching import fetch_backbones
from fmplex_tools.files import write_whole
from fmplex_tools.packages import progress_columns
from fmplex_tools.tasks.progress import progress_bars
from fmplex_tools.tasks.publish import write_fm

RESULTS = "catalogue.json"
"""Beside the repository: what each task took and reached."""


@dataclass(frozen=True)
class Made:
    """What was made of one task."""

    name: str
    seconds: float
    """From its data to the published vFM."""
    rows: int
    """Trained on."""
    test_rows: int
    metric: str
    value: float
    frozen: float
    """The same of a head on the frozen backbone, on the same rows."""
    bytes_on_disk: int
    adapter: bool


def results_file(repository: Path) -> Path:
    """Where the results of ``repository`` are kept."""
    return repository.resolve().parent / f"{repository.resolve().name}.{RESULTS}"


def read_results(repository: Path) -> dict[str, Made]:
    """By name; empty where nothing was built."""
    path = results_file(repository)
    if not path.is_file():
        return {}
    return {name: Made(**made) for name, made in json.loads(path.read_text("utf-8")).items()}


def ensure_fms(repository: Path, fms: Sequence[str]) -> None:
    """Put the physical FMs that are missing into ``repository``, which is made where there is none."""
    repository.mkdir(parents=True, exist_ok=True)
    for fm in set(fms) - set(physical_fms(repository)):
        write_fm(repository, fm, FMS[fm], f"Physical FM: every {fm} vFM of the catalogue shares it.")


def build(repository: Path, wanted: Sequence[Entry], jobs: int, console: Console) -> dict[str, str]:
    """Make what is missing of ``wanted`` in ``repository``; task → why it was not made. Ctrl-C keeps what is done."""
    ensure_fms(repository, [entry.fm for entry in wanted])
    fetch_backbones(repository, console)
    there = model_dirs(repository)
    missing = [entry for entry in wanted if entry.name not in there]
    failed = fetch(missing, console)
    todo = [entry for entry in missing if entry.name not in failed]
    if not todo:
        return failed
    # Tasks of one backbone together: each process loads it once.
    todo.sort(key=lambda entry: entry.fm)
    with progress_bars(console) as progress, _workers(min(jobs, len(todo))) as pool:
        line = progress.add_task("catalogue", total=len(todo))
        futures = {pool.submit(_make, entry.name, str(repository)): entry for entry in todo}
        for future in as_completed(futures):
            name = futures[future].name
            why = _finished(future, repository, console, name)
            if why is not None:
                failed[name] = why
            progress.advance(line)
    return failed


def fetch(wanted: Sequence[Entry], console: Console) -> dict[str, str]:
    """Fetch the packages that ``wanted`` read; task → why its data is not to be had."""
    failed: dict[str, str] = {}
    told: dict[Any, str] = {}
    with Progress(*progress_columns(), console=console, transient=True) as progress:
        for entry in wanted:
            for source in entry.sources:
                if source in told:
                    failed[entry.name] = told[source]
                elif not source.fetched:
                    try:
                        source.folder(progress)
                    except FMplexError as error:
                        failed[entry.name] = told[source] = str(error)
    return failed


def _finished(future: Future[Made], repository: Path, console: Console, name: str) -> str | None:
    """Note the result; why there is none."""
    try:
        made = future.result()
    except FMplexError as error:
        return str(error)
    except Exception as error:  # a defect in one task's data or code: the others are made
        return f"{type(error).__name__}: {error}"
    results = {known: asdict(one) for known, one in read_results(repository).items()} | {name: asdict(made)}
    write_whole(results_file(repository), json.dumps(results, indent=1, sort_keys=True))
    console.print(
        f"  {name:<24} {made.metric} {made.value:.3f} (frozen {made.frozen:.3f})  "
        f"{made.bytes_on_disk / 1000:,.0f} KB  {made.seconds:.1f} s"
    )
    return None


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that each use their part of the cores; ended at once where the block is left by Ctrl-C."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare, initargs=(threads,))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _prepare(threads: int) -> None:
    """In a process of its own, before anything is imported there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    os.environ["GOMP_SPINCOUNT"] = "0"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    torch.set_num_threads(threads)
    disable_progress_bar()
    set_verbosity_error()


_loaded: dict[str, Any] = {}


def _make(name: str, repository: str) -> Made:
    """In a process of its own. Raises `FMplexError`."""
    from fmplex_tools.tasks.api import create_task
    from fmplex_tools.tasks.backbone import load_backbone

    started = time.monotonic()
    entry = entries()[name]
    if entry.fm not in _loaded:
        _loaded.clear()  # tasks come sorted by their FM: the one before is not needed any more
        _loaded[entry.fm] = load_backbone(Path(repository), entry.fm)
    result = create_task(Path(repository), name, entry.load(), entry.options, fm=entry.fm, backbone=_loaded[entry.fm])
    quality = result.artifact.quality
    assert quality is not None
    assert result.probe is not None
    return Made(
        name,
        round(time.monotonic() - started, 1),
        quality.train_rows,
        quality.test_rows,
        quality.metric,
        quality.value,
        round(result.probe.value, 4),
        result.bytes_on_disk,
        result.artifact.adapter,
    )
