"""``fmplex bench compare``: FMplex and what one would use without it, on this machine, under the same load."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.errors import InvalidInput
from fmplex_backend.processor import processor_name
from fmplex_tools.bench.compare.agreement import Agreement, closed_agreement
from fmplex_tools.bench.compare.comparison import Comparison
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.markdown import as_markdown, most_tasks_as_markdown
from fmplex_tools.bench.compare.most_tasks import Target, Trial, best, most_tasks
from fmplex_tools.bench.compare.plan import REFERENCE, Plan
from fmplex_tools.bench.compare.records import Record, merged
from fmplex_tools.bench.compare.started import start
from fmplex_tools.bench.compare.verdicts import OURS, figures_of, worse
from fmplex_tools.bench.engine.command import (
    FM,
    REPOSITORY,
    JsonFile,
    PlotsTo,
    Repository,
    Seed,
    Threads,
    carry_out,
    choices,
    numbers,
)
from fmplex_tools.bench.engine.report import as_json
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.perf_binary import perf_analyzer
from fmplex_tools.console import err, out
from fmplex_tools.files import write_whole
from fmplex_tools.packages import progress_columns

QUICK_SECONDS, QUICK_TASKS = 8.0, 8
MOST_TASKS_GOAL = 20.0
AGREEMENT_GOAL = 0.05
FIRST = {OURS: 128, REFERENCE: 8}
"""Where the search for the most tasks begins."""


def compare(
    quick: Annotated[bool, typer.Option("--quick", help="8 tasks, three loads, 8 s each: under 10 minutes.")] = False,
    tasks: Annotated[str, typer.Option(help="Numbers of tasks, comma-separated.")] = "2,4,8,16",
    deployments: Annotated[
        str, typer.Option(help="Which ones, comma-separated; best_effort sets the loads.")
    ] = ",".join(DEPLOYMENTS),
    seconds: Annotated[float, typer.Option(min=4, max=600, help="Of each load; the first 2 do not count.")] = 17.0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Times through everything; medians count.")] = 1,
    varied: Annotated[
        int, typer.Option(min=0, help="Number of tasks also loaded unevenly, in bursts, by a flooder …; 0: none.")
    ] = 8,
    limits: Annotated[bool, typer.Option("--limits", help="Also: how many tasks fit, by search.")] = False,
    demand: Annotated[float, typer.Option(min=1e-4, help="With --limits: requests a second of each task.")] = 0.05,
    target_ms: Annotated[float, typer.Option(min=1, help="With --limits: the p99 that must be met.")] = 500.0,
    most: Annotated[int, typer.Option(min=2, max=16384, help="With --limits: no more tasks than these.")] = 4096,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Also: our load generator against perf_analyzer.")
    ] = False,
    from_files: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Measure nothing: report this --json file, or several as one.", exists=True),
    ] = None,
    threads: Threads = 0,
    seed: Seed = 0,
    json_file: JsonFile = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the report here.")] = None,
    plots_to: PlotsTo = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Compare FMplex with private backbones, fenced or not, with swapped adapters, PEFT's mixed batches and FIFO.

    Each deployment is started on the real Triton server, one after the other; its answers are checked against plain
    transformers + peft; then it gets the same requests at the same times as the others: light, middle and heavy load
    are 20, 50 and 80 % of what best-effort co-location can do. Latency counts from when a request was due. Exits with 1
    where a goal is missed. All of it takes more than an hour; Ctrl-C (or SIGTERM)
    reports what was measured until then, and --json has it all the while.

    Examples:

      fmplex bench compare --quick

      fmplex bench compare --json compare.json --markdown compare.md --plots docs/plots

      fmplex bench compare --tasks 8 --deployments fmplex,best_effort --rounds 3

      fmplex bench compare --quick --deployments fmplex,best_effort --limits --agreement

      fmplex bench compare --from monday.json --from tuesday.json --markdown compare.md
    """

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        plan = Plan(
            source=repository,
            fm=FM,
            deployments=tuple(choices(deployments, "--deployments", list(DEPLOYMENTS))),
            tasks=(QUICK_TASKS,) if quick else tuple(numbers(tasks, "--tasks", 1, 1024)),
            varied=0 if quick else varied,
            seconds=min(seconds, QUICK_SECONDS) if quick else seconds,
            rounds=rounds,
            threads=threads,
            seed=seed,
        )
        noted |= {**machine(), "seconds": plan.seconds, "rounds": rounds, "seed": seed}
        if from_files:
            record = merged(read(file, noted) for file in from_files)
        else:
            comparison = Comparison(plan, progress, keep=lambda record: _keep(record, noted, json_file))
            try:
                record = comparison.run()
            except KeyboardInterrupt:
                record = comparison.record
                if not record.cells:
                    raise
                noted["stopped"] = "early"  # an hour's work is worth telling
        outcome = outcome_of(record)
        text = as_markdown(record, noted)
        if limits and "stopped" not in noted:
            target = Target(
                source=repository, fm=FM, demand=demand, p99_ms=target_ms, seconds=4 * seconds, most=most,
                threads=threads, seed=seed,
            )  # fmt: skip
            trials = search(target, progress)
            outcome.figures += limit_figures(trials)
            outcome.details["most_tasks"] = {
                name: [dataclasses.asdict(t) for t in tried] for name, tried in trials.items()
            }
            text += most_tasks_as_markdown(target, trials)
        if agreement and "stopped" not in noted:
            found = agree(plan, progress)
            outcome.figures += agreement_figures(found)
            outcome.details["agreement"] = dataclasses.asdict(found)
        if markdown_file is not None:
            markdown_file.write_text(text, encoding="utf-8")
        if plots_to is not None:
            from fmplex_tools.bench.compare.plots import draw

            for file in draw(record, plots_to):
                out.print(f"drawn: {file}")
        if found_worse := worse(record):
            err.print(f"FMplex is worse in {len(found_worse)} figures, most of all:", style="bold")
            for sentence in found_worse[:5]:
                err.print(f"  {sentence}", highlight=False)
        return outcome

    carry_out("compare", measure, {}, json_file, None)


def outcome_of(record: Record) -> Outcome:
    """Figures, and all that they are made of."""
    return Outcome(figures_of(record), {"record": record.as_data()})


def _keep(record: Record, noted: dict[str, Any], json_file: Path | None) -> None:
    if json_file is not None:
        write_whole(json_file, as_json(outcome_of(record), noted | {"stopped": "early"}))


def read(file: Path, noted: dict[str, Any]) -> Record:
    """What an earlier run has found; its conditions go into ``noted``. Raises `InvalidInput`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        record = Record.from_data(found["details"]["record"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{file}: not written by fmplex bench compare --json ({error!r})") from None
    noted |= found["conditions"]
    return record


def machine() -> dict[str, Any]:
    """Where it was measured, and with which versions."""
    commit = "unknown"
    try:
        where = Path(__file__).parent
        ran = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True, check=False
        )
        commit = ran.stdout.strip() or commit
    except OSError:  # no git here
        pass
    return {
        "machine": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "software": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")),
        "commit": commit,
    }


def search(target: Target, progress: Progress) -> dict[str, list[Trial]]:
    """How many tasks FMplex and private copies can have."""
    line = progress.add_task("how many tasks fit", total=None)
    found = {
        name: most_tasks(
            name,
            target,
            first,
            lambda what: progress.update(line, description=f"how many fit: {what}"),
            lambda told: err.print(told, highlight=False),
        )
        for name, first in FIRST.items()
    }
    progress.remove_task(line)
    return found


def limit_figures(trials: dict[str, list[Trial]]) -> list[Figure]:
    """The largest numbers that met the target, and their ratio."""
    part, figures, counts = "tasks on this machine", [], {}
    for name, tried in trials.items():
        found = best(tried)
        counts[name] = found.tasks if found else 0
        beyond = min((trial for trial in tried if not trial.met), key=lambda trial: trial.tasks, default=None)
        told = f"(then: {beyond.why})" if beyond else "(no more were tried)"
        figures.append(Figure(part, DEPLOYMENTS[name].title, counts[name], told))
    ratio = counts[OURS] / counts[REFERENCE] if counts[REFERENCE] else float("nan")
    return [*figures, Figure(part, "ratio", ratio, "×", f"≥ {MOST_TASKS_GOAL:g}×", ratio >= MOST_TASKS_GOAL)]


def agree(plan: Plan, progress: Progress) -> Agreement:
    """Our closed loop against perf_analyzer's, on one vFM."""
    with Progress(*progress_columns(), console=err, transient=True, disable=True) as quiet:
        binary = perf_analyzer(quiet)
    line = progress.add_task("our load generator and perf_analyzer by turns", total=1.0)
    with start(DEPLOYMENTS[OURS], plan.source, plan.fm, 1, seed=plan.seed, threads=plan.threads) as started:
        found = closed_agreement(
            started.url, started.repository.models[0], binary, seed=plan.seed,
            on_tick=lambda part: progress.update(line, completed=part),
        )  # fmt: skip
    progress.remove_task(line)
    return found


def agreement_figures(found: Agreement) -> list[Figure]:
    """Ours over perf_analyzer's."""
    part, figures = "our closed loop / perf_analyzer's", []
    for name in ("rows_per_s", "mean_ms", "p50_ms", "p99_ms"):
        ratio, ours, theirs = (getattr(side, name) for side in (found.ratios, found.ours, found.perf_analyzer))
        promised = name != "p99_ms"
        good = abs(ratio - 1) <= AGREEMENT_GOAL if promised else None
        goal = f"1 ± {AGREEMENT_GOAL:g}" if promised else ""
        figures.append(Figure(part, name.replace("_", " "), ratio, f"× ({ours:.4g} / {theirs:.4g})", goal, good))
    return figures
