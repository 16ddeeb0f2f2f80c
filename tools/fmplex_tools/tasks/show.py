"""Tables of vFMs for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from fmplex_tools.tasks.manage import TaskInfo

if TYPE_CHECKING:
    from fmplex_tools.tasks.making import TaskResult


def result_table(result: TaskResult) -> Table:
    """What `create_task`, `train_task` or `import_task` made."""
    artifact, quality = result.artifact, result.artifact.quality
    table = _facts(f"{result.name}, version {result.version}")
    table.add_row("kind", artifact.kind + (f", port {result.port}" if result.port is not None else ""))
    if artifact.labels:
        table.add_row("outputs", _labels(artifact.labels))
    if quality is None:
        table.add_row("held-out rows", "not measured")
    else:
        table.add_row("trained", "head and LoRA adapter" if artifact.adapter else "head only")
        table.add_row("rows", f"{quality.train_rows} to train, {quality.test_rows} held out ({quality.split})")
        if result.duplicates:
            table.add_row("left out", f"{result.duplicates} rows whose text came before or is held out")
        table.add_row(quality.metric, f"{quality.value:.3f}")
        table.add_row(f"  {quality.baseline_metric}", f"{quality.baseline:.3f}")
        if result.probe is not None and artifact.adapter:
            table.add_row("  frozen backbone, head only", f"{result.probe.value:.3f}")
        if result.mean_absolute_error is not None:
            table.add_row("mean absolute error", f"{result.mean_absolute_error:.3f}")
    table.add_row("on disk", f"{result.bytes_on_disk / 1000:.0f} KB")
    table.add_row("took", f"{result.seconds:.1f} s")
    return table


def tasks_table(tasks: list[TaskInfo]) -> Table:
    """One line a vFM, in 80 columns: the metric is its kind's, which `info_table` names.

    What is wrong with a broken one stands in place of its quality.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("vFM", "port", "kind", "version", "weight"):
        table.add_column(heading, no_wrap=True)
    table.add_column("held out (baseline)", min_width=13, overflow="fold")
    for task in tasks:
        artifact = task.artifact
        quality = artifact.quality if artifact else None
        adapter = " + LoRA" if artifact and artifact.adapter else ""
        kind = "bundle" if task.bundle else artifact.kind + adapter if artifact else "[red]broken[/]"
        last = f"[red]{escape(task.problem)}[/]" if task.problem else ""
        if quality is not None:
            last = f"{quality.value:.3f} ({quality.baseline:.3f})"
        table.add_row(
            escape(task.name),
            ", ".join(map(str, task.ports)),
            kind,
            ("" if task.version is None or task.bundle else str(task.version)) + (" pinned" if task.pinned else ""),
            "" if task.policy is None or task.bundle else f"{task.policy.weight:g}",
            last,
        )
    return table


def info_table(task: TaskInfo) -> Table:
    """Everything about one vFM or bundle."""
    table = _facts(task.name)
    if task.problem:
        table.add_row("[red]problem[/]", escape(task.problem))
    table.add_row("physical FM", f"{task.fm or ''}, port {', '.join(map(str, task.ports))}")
    table.add_row(
        "outputs", ", ".join(f"{name} ← port{port}.{socket}" for name, (port, socket) in task.outputs.items())
    )
    versions = ", ".join(map(str, task.versions)) or "none"
    table.add_row("versions", f"{versions}; served {task.version}{' (pinned)' if task.pinned else ''}")
    if task.policy is not None:
        table.add_row("policy", ", ".join(f"{name}={value:g}" for name, value in task.policy.model_dump().items()))
        tokens = len([token for token in task.policy.access_tokens.split(",") if token])
        table.add_row("answers to", f"{tokens} token{'s' if tokens > 1 else ''}" if tokens else "anybody")
    if task.artifact is not None:
        _add_artifact(table, task)
    table.add_row("on disk", f"{task.bytes_on_disk / 1000:.0f} KB")
    return table


def _add_artifact(table: Table, task: TaskInfo) -> None:
    artifact = task.artifact
    assert artifact is not None
    table.add_row("kind", f"{artifact.kind}, head {artifact.head}, pooling {artifact.pooling}")
    if artifact.labels:
        table.add_row("labels", _labels(artifact.labels))
    given = artifact.encoder.model_dump(exclude_defaults=True)
    table.add_row("encoder", escape(", ".join(f"{key}={value!r}" for key, value in given.items()) or "defaults"))
    table.add_row("adapter", "yes" if artifact.adapter else "no")
    table.add_row("backbone", f"{artifact.backbone.name} ({artifact.backbone.fingerprint[:19]}…)")
    if (quality := artifact.quality) is not None:
        table.add_row(
            "quality", f"{quality.metric} {quality.value:.3f} ({quality.baseline_metric} {quality.baseline:.3f})"
        )
        table.add_row("rows", f"{quality.train_rows} to train, {quality.test_rows} held out ({quality.split})")
    table.add_row("made", f"{artifact.created or 'unknown'} from {escape(artifact.source or 'unknown data')}")


def _facts(title: str) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _labels(labels: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return escape(", ".join(labels[:most]) + more)
