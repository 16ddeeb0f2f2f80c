"""What a soak found: figures and their goals, and a plot of what the server held over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmplex_tools.bench.engine.churn_check import TOLERANCE, References, largest_difference
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.faults.samples import SERVER, Sample, as_data, medians

if TYPE_CHECKING:
    from fmplex_tools.bench.faults.soak import Soak

GROWTH = 1.05
"""Memory in the last sixth of the time, of that in the second sixth, at most."""
FEW = 4
"""Threads, files, processes, segments that there may be more in the last sixth than in the second one."""
COUNTED: dict[str, Callable[[Sample], float]] = {
    "threads": lambda sample: sample.server.threads,
    "files": lambda sample: sample.server.files,
    "processes": lambda sample: sample.server.processes,
    "segments of shared memory": lambda sample: sample.segments,
}


def outcome_of(run: Soak, first: References, last: References) -> Outcome:
    """Figures of a whole run; ``first`` and ``last`` are the references before and after it."""
    checker, errors = run.checker, run.errors
    failed, changes = errors.others.total(), sum(run.chaos.counts.values())
    again = largest_difference(first, last)
    load = f"{run.plan.seconds:.0f} s of everything on {run.plan.vfms} vFMs"
    figures = [
        Figure(load, f"rows checked, of {checker.requests:,} requests", checker.rows),
        Figure(load, "requests answered wrongly", checker.wrong, "", "0", checker.wrong == 0),
        Figure(load, "requests failed without excuse", failed, "", "0", failed == 0),
        Figure(load, "largest deviation", checker.deviation),
        Figure(load, "references afterwards, largest difference", again, "", f"≤ {TOLERANCE:g}", again <= TOLERANCE),
        Figure(load, "a replaced version answered for, longest", run.stale, "s"),
        Figure(load, "changes of versions, vFMs and weights", changes),
        *(Figure(load, what, count) for what, count in run.counts.items()),
        *run.killer.figures(promised=False),  # in a flood, what is sent after a fault waits for other reasons too
        *flatness(run.sampler.samples),
        *(Figure("failed", kind, count) for kind, count in sorted(errors.allowed.items())),
        *(Figure("failed without excuse", kind, count) for kind, count in sorted(errors.others.items())),
    ]
    details = {
        "wrong": checker.details + errors.messages,
        "allowed": dict(errors.allowed),
        "others": dict(errors.others),
        "changes": dict(run.chaos.counts),
        "counts": dict(run.counts),
        "recoveries": run.killer.recoveries,
        "asked": run.asked,
        "rows": checker.rows,
        "samples": as_data(run.sampler.samples),
    }
    return Outcome(figures, details)


def flatness(samples: Sequence[Sample]) -> list[Figure]:
    """Medians of the last sixth of the time, against those of the second."""
    part = "held, last sixth of the time against the second"
    figures = []
    for role in SERVER:

        def memory(sample: Sample, role: str = role) -> float:
            return sample.held[role].memory

        before, after = medians(samples, memory)
        ratio = after / before
        unit = f"× ({before:.1f} → {after:.1f} MB)"
        figures.append(Figure(part, f"memory of {role}", ratio, unit, f"≤ {GROWTH:g}×", ratio <= GROWTH))
    for what, count in COUNTED.items():
        before, after = medians(samples, count)
        more = after - before
        figures.append(Figure(part, f"{what} more", more, f"({before:g} → {after:g})", f"≤ {FEW}", more <= FEW))
    return figures


def draw(outcome: Outcome, folder: Path) -> Path:
    """Memory of each role, and threads, files and segments, over the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    samples: list[dict[str, Any]] = outcome.details["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    figure, (memory, counts) = pyplot.subplots(1, 2, figsize=(8.0, 3.0), dpi=80, layout="constrained")
    for role in SERVER:
        memory.plot(minutes, [sample[role]["memory"] for sample in samples], label=role)
    for what in ("threads", "files"):
        counts.plot(minutes, [sum(sample[role][what] for role in SERVER) for sample in samples], label=what)
    counts.plot(minutes, [sample["segments"] for sample in samples], label="segments of shared memory")
    for axes, title in ((memory, "MB"), (counts, "how many")):
        axes.set(xlabel="minutes", ylabel=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    file = folder / "faults_soak.png"
    figure.savefig(file)
    pyplot.close(figure)
    return file
