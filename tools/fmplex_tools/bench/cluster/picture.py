"""The picture of `bench.cluster`."""

from __future__ import annotations

from pathlib import Path

from fmplex_tools.bench.cluster.bench import CURVES
from fmplex_tools.bench.fair.bench import Outcome


def draw(outcome: Outcome, folder: Path) -> Path:
    """Tasks that are hosted over the rate of each, a panel for each kind of device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    details = dict(outcome.details[CURVES])
    rates = details.pop("rates")
    figure, panels = pyplot.subplots(
        1, len(details), figsize=(3.2 * len(details), 3.0), dpi=80, layout="constrained", sharey=True, squeeze=False
    )
    for axes, (world, curves) in zip(panels[0], details.items(), strict=True):
        for title, tasks in curves.items():
            axes.plot(rates, tasks, marker=".", label=title)
        axes.set(xscale="log", yscale="log", title=world, xlabel="rows/s of each task")
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel="tasks hosted in time")
    panels[0][0].legend(fontsize=8)
    file = folder / "cluster.png"
    figure.savefig(file)
    pyplot.close(figure)
    return file
