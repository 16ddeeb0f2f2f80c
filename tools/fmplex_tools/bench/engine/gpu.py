"""``fmplex bench engine gpu``: BERT-base with 92 vFMs on a CUDA device, against what its matrix products allow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from fmplex_tools.bench.engine.command import (
    Device,
    Dtype,
    JsonFile,
    PlotsTo,
    Seconds,
    Seed,
    Threads,
    carry_out,
    compute_as_an_engine,
    machine,
)
from fmplex_tools.bench.engine.mixed import measure_mixed
from fmplex_tools.bench.engine.report import SERIES
from fmplex_tools.bench.engine.rounds import Contender, at_least, interleave, ratio
from fmplex_tools.bench.fair.bench import Figure, Outcome

if TYPE_CHECKING:
    from fmplex_backend.backbones.base import Backbone
    from fmplex_backend.engine.worker import Worker

ROWS, LENGTHS = (1, 4, 16, 64), (16, 32, 64, 128)
FULL = 64
SMALL_FLEET = 6
TITLES = {None: "", False: ", no CUDA graphs", True: ", CUDA graphs"}


def gpu(
    device: Device = "cuda:0",
    vfms: Annotated[int, typer.Option(min=1, max=4096, help="LoRA of rank 8 on query and value.")] = 92,
    dtype: Annotated[Dtype, typer.Option(help="Of the backbone.")] = "bf16",
    small: Annotated[bool, typer.Option("--small", help="A tiny backbone and few vFMs: tries this script.")] = False,
    threads: Threads = 0,
    seconds: Seconds = 20.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    plots_to: PlotsTo = None,
) -> None:
    """What a CUDA device makes of a backbone of BERT-base's size (random weights) and 92 vFMs. Needs no server.

    alpha: what a batch costs that has no work in it, fitted to a grid of batches, with and without CUDA graphs. limit:
    rows/s of full batches of all vFMs, against the matrix products of such a batch alone, at 32 and 128 tokens. Then
    the table of `mixed`. Each takes --seconds. Without a CUDA device it says so and exits with 0.

    Examples:

      fmplex bench engine gpu

      fmplex bench engine gpu --device cpu --small --seconds 1
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        compute_as_an_engine(device, threads)
        count = SMALL_FLEET if small else vfms
        noted |= {**machine(device), "vfms": count}
        line = progress.add_task("making the backbone", total=1.0)
        from fmplex_tools.bench.engine.random_bert import make_random_bert

        with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
            spec = str(make_random_bert(Path(folder) / "backbone", small=small, seed=seed))
            outcome = _alpha_and_limit(spec, dtype, device, count, small, seconds, seed, progress, line)
            rows, tokens = (4, 8) if small else (FULL, 32)
            of_mixed = measure_mixed(spec, dtype, device, rows, tokens, seconds, seed, progress, line)
        outcome.figures += of_mixed.figures
        outcome.details[SERIES] |= of_mixed.details.pop(SERIES)
        outcome.details["mixed"] = of_mixed.details
        return outcome

    if reason := missing(device):
        typer.echo(f"skipped: {reason}")
        return
    conditions = {"dtype": dtype, "device": device, "small": small, "seconds": seconds, "seed": seed}
    carry_out("gpu", measure, conditions, json_file, plots_to)


def missing(device: str) -> str | None:
    """Why nothing can be measured on ``device``; None where it is there. Raises nothing."""
    import torch

    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return f"torch sees no CUDA device, so {device!r} cannot be measured; --device cpu --small tries the script"
    count = torch.cuda.device_count()
    number = int(device.removeprefix("cuda:")) if device.removeprefix("cuda:").isdigit() else 0
    return None if number < count else f"there is no device {device!r}; there are {count}"


def _alpha_and_limit(
    spec: str,
    dtype: str,
    device: str,
    vfms: int,
    small: bool,
    seconds: float,
    seed: int,
    progress: Progress,
    line: Any,
) -> Outcome:
    from fmplex_backend.backbones.registry import load_backbone
    from fmplex_backend.engine.worker import Worker
    from fmplex_tools.bench.engine.adapters import AdapterSpec, load_peft, peft_model

    # A worker changes its backbone, so each has its own.
    settings: list[bool | None] = [False, True] if device != "cpu" else [None]
    workers: dict[bool | None, Worker] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
            for graphs in settings:
                progress.update(line, description=f"loading {vfms} vFMs{TITLES[graphs]}")
                backbone = load_backbone(spec, dtype, device)
                model = peft_model(backbone, AdapterSpec(8, ("query", "value")), vfms, seed)
                workers[graphs] = Worker(backbone, device, vfms, graphs=bool(graphs))
                load_peft(workers[graphs], model, Path(folder) / str(graphs))
        outcome = Outcome(details={SERIES: {}})

        def tick(part: float) -> None:
            progress.update(line, completed=part)

        progress.update(line, description="what a batch costs")
        outcome.figures += _alphas(workers, vfms, small, seconds, seed, tick)
        progress.update(line, description="full batches against their matrix products")
        plain = load_backbone(spec, dtype, device)
        for tokens in (8,) if small else (32, 128):
            outcome.figures += _limits(outcome, plain, workers, tokens, vfms, seconds / 2, seed, tick)
        return outcome
    finally:
        for worker in workers.values():
            worker.close()


def _alphas(
    workers: dict[bool | None, Worker], vfms: int, small: bool, seconds: float, seed: int, tick: Any
) -> list[Figure]:
    """α of each worker, from batches of several sizes whose least seconds a cost model is fitted to."""
    from fmplex_backend.calibration.fit import fit
    from fmplex_backend.messages import Point

    shapes = [(rows, tokens) for rows in ROWS for tokens in (LENGTHS[:1] if small else LENGTHS)]
    contenders: dict[str, Contender] = {}
    for graphs, worker in workers.items():
        for rows, tokens in shapes:
            for distinct in sorted({1, min(rows, vfms)}):
                run = batch_runner(worker, rows, tokens, distinct, seed)
                contenders[f"{TITLES[graphs]}|{rows}|{tokens}|{distinct}"] = run
    times = interleave(contenders, seconds, on_tick=tick)
    figures = []
    for graphs in workers:
        points = []
        for name, found in times.items():
            title, *sizes = name.split("|")
            if title == TITLES[graphs]:
                rows, tokens, distinct = map(int, sizes)
                points.append(Point(rows, tokens, distinct, min(found)))
        fitted = fit(points)
        smallest = min(point.seconds for point in points)
        told = f"ms (error of the fit {fitted.error:.0%})"
        figures.append(Figure("alpha", f"α{TITLES[graphs]}", 1e3 * fitted.cost.alpha, told))
        figures.append(Figure("alpha", f"γ, per distinct vFM{TITLES[graphs]}", 1e6 * fitted.cost.gamma, "µs"))
        figures.append(Figure("alpha", f"the smallest batch{TITLES[graphs]}", 1e3 * smallest, "ms"))
    return figures


def batch_runner(worker: Worker, rows: int, tokens: int, distinct: int, seed: int) -> Contender:
    """Runs one batch of ``distinct`` vFMs by turns; its seconds as the worker tells them."""
    from fmplex_backend.messages import RunBatch
    from fmplex_tools.bench.engine.adapters import BARE, random_rows

    generations = [BARE + 1 + row % distinct for row in range(rows)]
    batch = RunBatch(0, generations, random_rows(worker.backbone.model, rows, tokens, seed))
    return lambda: worker.run(batch).seconds


def _limits(
    outcome: Outcome,
    plain: Backbone,
    workers: dict[bool | None, Worker],
    tokens: int,
    vfms: int,
    seconds: float,
    seed: int,
    tick: Any,
) -> Sequence[Figure]:
    """Rows/s of full batches of all vFMs against the matrix products of the bare backbone's batch."""
    import torch

    from fmplex_tools.bench.engine.adapters import collated, random_rows
    from fmplex_tools.bench.engine.limit import Products

    part, limit, bare = f"limit, {tokens} tokens", "matrix products alone", "plain forward"
    products = Products(plain, FULL, tokens)
    rows = random_rows(plain.model, FULL, tokens, seed)

    def forward() -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            plain.forward(collated(plain, rows))
        if plain.device != "cpu":
            torch.cuda.synchronize(plain.device)
        return time.perf_counter() - begun

    contenders: dict[str, Contender] = {limit: products.run, bare: forward}
    names = {graphs: f"{min(FULL, vfms)} vFMs{title}" for graphs, title in TITLES.items() if graphs in workers}
    for graphs, name in names.items():
        contenders[name] = batch_runner(workers[graphs], FULL, tokens, min(FULL, vfms), seed)
    times = interleave(contenders, seconds, on_tick=tick)
    outcome.details[SERIES][f"{part}, ms"] = {name: [1e3 * t for t in found] for name, found in times.items()}
    reached = products.flops / min(times[limit]) / 1e12
    figures = [Figure(part, limit, FULL / min(times[limit]), f"rows/s ({reached:.3g} TFLOP/s)")]
    for name in (bare, *names.values()):
        figures.append(Figure(part, name, FULL / min(times[name]), "rows/s"))
        figures.append(at_least(part, f"{name} / limit", ratio(times[limit], times[name])))
    return figures
