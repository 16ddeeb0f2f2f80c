"""``fmplex bench``: benchmarks of a running server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_client import Client, FMplexClientError
from fmplex_client.tasks import Task
from fmplex_tools import compare_cli, engine_cli, fair_cli, families_cli, faults_cli, fleet_bench_cli
from fmplex_tools.bench.perf import TEXTS, Load, Row, levels, measure, read_texts
from fmplex_tools.bench.perf_binary import perf_analyzer
from fmplex_tools.infer_cli import default_url, protocol_of
from fmplex_tools.packages import progress_columns
from fmplex_tools.simulate_cli import simulate

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure.")
console = Console(emoji=False)
errors = Console(stderr=True, emoji=False)
app.command("compare")(compare_cli.compare)
app.command("fair")(fair_cli.fair)
app.command("families")(families_cli.families)
app.command("fleet")(fleet_bench_cli.fleet)
app.command("hosted")(fleet_bench_cli.hosted)
app.command("cluster")(fleet_bench_cli.cluster)
app.command("plan")(fleet_bench_cli.plan)
app.command("simulate")(simulate)
app.add_typer(engine_cli.app, name="engine")
app.add_typer(faults_cli.app, name="faults")


@app.callback()
def _group() -> None:
    """Benchmarks of a running server."""


@app.command()
def perf(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="vFMs or bundles to ask, one after the other.")],
    concurrency: Annotated[
        str, typer.Option(help="Requests at a time: 4, 1,4,16, START:END or START:END:STEP.")
    ] = "1,8",
    batch: Annotated[int, typer.Option(min=1, help="Rows in a request.")] = 1,
    protocol: Annotated[str, typer.Option(help="http or grpc.")] = "grpc",
    seconds: Annotated[float, typer.Option(min=0.3, max=600, help="Measuring time per line of the table.")] = 6.0,
    url: Annotated[str, typer.Option(help="HOST:PORT; by default 127.0.0.1 and the protocol's port.")] = "",
    text: Annotated[list[str] | None, typer.Option(help="A text to send; may be given again.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Texts to send: lines of a file, or .jsonl with 'text'.", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, times in ms.")] = False,
) -> None:
    """Run the real perf_analyzer against tasks of a running server and print its figures.

    Fetches perf_analyzer the first time. Without --text or --data it sends the openings of eight books.

    Examples:

      fmplex bench perf review_polarity

      fmplex bench perf review_polarity news_topic --concurrency 1,4,16 --protocol http

      fmplex bench perf news_topic --data headlines.txt --batch 8 --seconds 10
    """
    try:
        rows = _perf(tasks, concurrency, batch, protocol, seconds, url, text, data, quiet=as_json)
    except (FMplexError, FMplexClientError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        for task in dict.fromkeys(tasks):
            console.print(table([row for row in rows if row.task == task], task))
        console.print(
            f"perf_analyzer over {protocol}, rows per request: {batch}, {seconds:g} s per line. Times in ms, as the "
            "client saw them; triton's own end when the FM host takes a request (its queue and compute are in `info`).",
            style="dim",
            highlight=False,
        )


def _perf(
    tasks: list[str],
    concurrency: str,
    batch: int,
    protocol: str,
    seconds: float,
    url: str,
    text: list[str] | None,
    data: Path | None,
    *,
    quiet: bool,
) -> list[Row]:
    spoken = protocol_of(protocol)
    address = url or default_url(spoken)
    steps = levels(concurrency)
    if text and data:
        raise InvalidInput("--text and --data: give one of them")
    texts = read_texts(data) if data else list(text or TEXTS)
    described = _describe(tasks, address, protocol)
    for task in described:
        if batch > task.max_batch_size:
            raise InvalidInput(f"--batch {batch}: task {task.name!r} takes at most {task.max_batch_size} rows")
    with Progress(*progress_columns(), console=errors, transient=True, disable=quiet) as progress:
        binary = perf_analyzer(progress)
    rows = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet) as progress:
        for task in described:
            for level in steps:
                line = progress.add_task(f"{task.name}, {level} at a time")
                load = Load(task.name, address, protocol, level, batch, seconds)
                rows.append(measure(binary, load, texts, pair=task.takes_pairs))
                progress.remove_task(line)
    return rows


def _describe(tasks: list[str], url: str, protocol: str) -> list[Task]:
    with Client(url, protocol_of(protocol), timeout=10) as client:
        return [client.task(name) for name in tasks]


def table(rows: list[Row], task: str) -> Table:
    """One task's figures for people; times in milliseconds."""
    made = Table(title=task, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("conc.", "rows/s", "mean", "p50", "p90", "p95", "p99", "triton\nqueue", "triton\ncompute"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        client = (row.mean_ms, row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms)
        times = (_ms(time) for time in (*client, row.server_queue_ms, row.server_compute_ms))
        made.add_row(str(row.concurrency), f"{row.rows_per_s:,.0f}", *times)
    return made


def _ms(time: float) -> str:
    return f"{time:.2f}" if time < 100 else f"{time:,.0f}"
