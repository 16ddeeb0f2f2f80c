"""What a long run shows: one bar a stage, with rows, loss and time left. Nothing where nobody looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Stage = Callable[[int, "float | None"], None]


class Reporter:
    """Opens one bar a stage on ``progress``; without one, every call does nothing."""

    def __init__(self, progress: Progress | None = None, name: str = "") -> None:
        self._progress, self._name = progress, name

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        """A bar of ``total`` rows; call what it gives with rows done and, where there is one, the loss."""
        if self._progress is None:
            yield lambda rows, loss=None: None
            return
        progress = self._progress
        label = f"{self._name} {what}".strip()
        task = progress.add_task(label, total=total)

        def advance(rows: int, loss: float | None = None) -> None:
            shown = label if loss is None else f"{label}  loss {loss:.3f}"
            progress.update(task, advance=rows, description=shown)

        try:
            yield advance
        finally:
            progress.remove_task(task)


def progress_bars(console: Console) -> Progress:
    """The bars of training: what, bar, rows, elapsed and time left; gone when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
