"""``fmplex bench simulate``: the scheduling policies in virtual time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_tools.bench.simulate import report
from fmplex_tools.bench.simulate.device import Device, cost_of, hiccups_of
from fmplex_tools.bench.simulate.figures import Figures
from fmplex_tools.bench.simulate.suite import Contender, Grid, Scenario, saturated
from fmplex_tools.bench.simulate.trace import Lengths, Load, Synthetic, read_trace

console = Console(emoji=False, highlight=False)
errors = Console(stderr=True, emoji=False, highlight=False)
STDOUT = Path("-")

TRACE, LOAD, DEVICE, OUTPUT = "Trace", "Made-up load", "Device", "Output"


def simulate(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="A trace, .csv or .jsonl: time_s, vfm, tokens, optional rows and weight. Else a load is made up."
        ),
    ] = None,
    policies: Annotated[
        str, typer.Option(help="Comma-separated; fair with other constants: fair:c_cap=8:padding=2.")
    ] = "fifo,drr,vtc,fair",
    flooder: Annotated[
        list[str] | None,
        typer.Option(help="A vFM of the trace to count apart; may be given again.", rich_help_panel=TRACE),
    ] = None,
    vfms: Annotated[int, typer.Option(min=1, max=100_000, help="Light vFMs.", rich_help_panel=LOAD)] = 16,
    load: Annotated[
        float, typer.Option(min=1e-6, help="Of all light vFMs, × the device's capacity.", rich_help_panel=LOAD)
    ] = 0.5,
    flood: Annotated[
        float, typer.Option(min=0, help="Of one more vFM, the flooder, × the capacity.", rich_help_panel=LOAD)
    ] = 0.0,
    saturate: Annotated[
        bool, typer.Option("--saturate", help="Every vFM always has rows waiting (no flooder).", rich_help_panel=LOAD)
    ] = False,
    lengths: Annotated[
        str, typer.Option(help="Tokens: 64, 16,64,256 or 8-256 (log-uniform).", rich_help_panel=LOAD)
    ] = "64",
    rows: Annotated[int, typer.Option(min=1, max=4096, help="In a request.", rich_help_panel=LOAD)] = 1,
    span: Annotated[float, typer.Option(min=1e-3, help="Virtual seconds of arrivals.", rich_help_panel=LOAD)] = 10.0,
    zipf: Annotated[float, typer.Option(min=0, help="The i-th vFM's rate ∝ i^-ZIPF.", rich_help_panel=LOAD)] = 0.0,
    duty: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="Part of the time a vFM sends: bursts below 1.", rich_help_panel=LOAD),
    ] = 1.0,
    burst_seconds: Annotated[
        float, typer.Option(min=1e-3, help="How long a burst lasts, on average.", rich_help_panel=LOAD)
    ] = 1.0,
    weights: Annotated[str, typer.Option(help="Of the vFMs, in turn: 1,2,4.", rich_help_panel=LOAD)] = "1",
    queue_size: Annotated[int, typer.Option(min=1, help="Rows of a vFM that may wait.")] = 512,
    timeout_ms: Annotated[float, typer.Option(min=0, help="Rows that waited longer expire; 0 is never.")] = 0,
    slo_ms: Annotated[
        float, typer.Option(min=0, help="Latency objective of the light vFMs; 0 is none.", rich_help_panel=LOAD)
    ] = 0,
    cost: Annotated[
        str,
        typer.Option(
            help="What the policies believe: h200, cpu2 or alpha,beta,gamma,delta (s).", rich_help_panel=DEVICE
        ),
    ] = "h200",
    device: Annotated[
        str, typer.Option(help="What the device is, if not that.", rich_help_panel=DEVICE, show_default=False)
    ] = "",
    noise: Annotated[
        float, typer.Option(min=0, max=3, help="σ of the logarithm of batches' times.", rich_help_panel=DEVICE)
    ] = 0.0,
    hiccups: Annotated[
        str, typer.Option(help="RATE:SECONDS, e.g. 0.001:2.", rich_help_panel=DEVICE, show_default=False)
    ] = "",
    engines: Annotated[int, typer.Option(min=1, max=64, help="Devices of this kind.", rich_help_panel=DEVICE)] = 1,
    max_batch_rows: Annotated[int, typer.Option(min=1, max=4096, rich_help_panel=DEVICE)] = 64,
    suite: Annotated[
        bool,
        typer.Option(
            "--suite", help="Run the whole grid: 4 to 1,000 vFMs, lengths, flooder, saturation, h200 and cpu2."
        ),
    ] = False,
    scale: Annotated[float, typer.Option(min=0.001, max=100, help="Of the suite's spans.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    csv: Annotated[Path | None, typer.Option(help="Write the figures; - prints them.", rich_help_panel=OUTPUT)] = None,
    json: Annotated[Path | None, typer.Option(help="Likewise.", rich_help_panel=OUTPUT)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Likewise, as a table.", rich_help_panel=OUTPUT)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A .png: latencies and throughput by policy.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Compare scheduling policies under a load, in virtual time, with the queues that serve.

    No server and no device is needed: a cost model says how long batches take. Capacity is what the device does in full
    batches without padding. Latencies are of the light vFMs, from arrival to answer.

    Examples:

      fmplex bench simulate --flood 2

      fmplex bench simulate --cost cpu2 --vfms 92 --zipf 1 --lengths 8-256 --span 120 --plot zipf.png

      fmplex bench simulate --saturate --weights 1,2,4 --policies fair,fair:c_cap=20

      fmplex bench simulate trace.csv --device 8e-3,3e-6 --noise 0.2 --hiccups 0.001:2

      fmplex bench simulate --suite --markdown suite.md
    """
    try:
        _check_outputs(csv, json, markdown, plot)
        contenders = [Contender.parse(spec) for spec in policies.split(",")]
        rate, seconds = hiccups_of(hiccups)
        make_device = functools.partial(Device, noise=noise, hiccup_rate=rate, hiccup_seconds=seconds)
        if suite:
            if trace or device:
                raise InvalidInput("--suite has loads and devices of its own: leave out the trace and --device")
            scenarios = list(Grid(scale=scale, device=make_device).scenarios())
        else:
            believed = cost_of(cost)
            length = Lengths.parse(lengths)
            capacity = engines * length.capacity(believed, max_batch_rows, vfms)
            made = Synthetic(
                vfms=vfms, rate=load * capacity, flood=flood * capacity, span=span, lengths=length, rows=rows,
                zipf=zipf, duty=duty, burst_seconds=burst_seconds, weights=_weights(weights), max_queue_size=queue_size,
                latency_slo=slo_ms / 1e3 or None, timeout=timeout_ms / 1e3 or None,
            )  # fmt: skip
            load_of, name, spec = _load(trace, flooder or [], made, saturate=saturate, batch=max_batch_rows)
            real = make_device(cost_of(device) if device else believed)
            scenarios = [
                Scenario(cost, name, spec if spec else lengths, believed, real, load_of, max_batch_rows, engines)
            ]
        found = _run(scenarios, contenders, seed)
        _write(found, csv, json, markdown, plot)
    except FMplexError as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped")
        raise typer.Exit(130) from None


def _weights(spec: str) -> tuple[float, ...]:
    try:
        weights = tuple(float(part) for part in spec.split(","))
    except ValueError:
        weights = ()
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise InvalidInput(f"weights {spec!r}: give numbers above 0, e.g. 1,2,4")
    return weights


def _load(
    trace: Path | None, flooders: Sequence[str], made: Synthetic, *, saturate: bool, batch: int
) -> tuple[Callable[[int], Load], str, str]:
    """How to get the load, its name, and its lengths where they are not those of the option."""
    if trace is not None:
        if saturate or made.flood:
            raise InvalidInput("a trace is played as it is: leave out --saturate and --flood")
        read = read_trace(
            trace,
            flooders=flooders,
            max_queue_size=made.max_queue_size,
            timeout=made.timeout,
            latency_slo=made.latency_slo,
        )
        return lambda _: read, trace.name, "as traced"
    if flooders:
        raise InvalidInput("--flooder names a vFM of a trace; a made-up load has --flood")
    if saturate:
        if made.flood:
            raise InvalidInput("--saturate: every vFM floods already; leave out --flood")
        closed = saturated(made.vfms, made.lengths, made.span, batch + 1, made.weights)
        return lambda _: closed, "saturated", ""
    return made.load, "flooded" if made.flood else "light", ""


def _run(scenarios: Sequence[Scenario], contenders: Sequence[Contender], seed: int) -> list[Figures]:
    found: list[Figures] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        line = bar.add_task("simulating", total=len(scenarios) * len(contenders))
        for scenario in scenarios:
            begun = len(found)

            def tell(label: str, part: float, scenario: Scenario = scenario, begun: int = begun) -> None:
                place = next(i for i, contender in enumerate(contenders) if contender.label == label)
                what = f"{scenario.cost}, {scenario.lengths}, {scenario.load}: {label}"
                bar.update(line, completed=begun + place + part, description=what)

            figures = scenario.run(contenders, seed, tell)
            found += figures
            title = f"{scenario.cost}, {scenario.lengths} tokens, {figures[0].vfms} vFMs, {scenario.load}"
            console.print(report.table(figures, title, console.width))
    return found


def _check_outputs(*paths: Path | None) -> None:
    """Before minutes of work, not after."""
    for path in paths:
        if path is not None and path != STDOUT and not path.parent.is_dir():
            raise InvalidInput(f"{path}: there is no folder {str(path.parent)!r}")


def _write(
    found: Sequence[Figures], csv: Path | None, json: Path | None, markdown: Path | None, plot: Path | None
) -> None:
    for path, text in ((csv, report.as_csv), (json, report.as_json), (markdown, report.markdown)):
        if path == STDOUT:
            print(text(found), end="")
        elif path is not None:
            _save(path, functools.partial(path.write_text, text(found), encoding="utf-8"))
    if plot is not None:
        _save(plot, functools.partial(report.plot, found, plot))


def _save(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be written: {error}") from None
    errors.print(f"wrote {path}")
