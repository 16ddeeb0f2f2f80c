"""``fmplex infer``: one request from the shell."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmplex_backend.errors import InvalidInput
from fmplex_client import (
    Anomaly,
    Answer,
    Classification,
    Client,
    Embedding,
    FMplexClientError,
    Forecast,
    Imputation,
    MultiLabel,
    Regression,
    Tensors,
    TokenClassification,
)
from fmplex_client.results import Result
from fmplex_client.wire import Protocol

Url = Annotated[str, typer.Option(help="HOST:PORT; by default 127.0.0.1 and the protocol's port.")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="http or grpc.")]
Token = Annotated[str, typer.Option(envvar="FMPLEX_TOKEN", help="For vFMs that answer only to tokens.")]
TlsCa = Annotated[str, typer.Option(help="With grpc, for `serve --secure`: who vouches for its certificate, PEM.")]


def protocol_of(name: str) -> Protocol:
    """``http`` or ``grpc``. Raises `InvalidInput`."""
    if name == "http":
        return "http"
    if name == "grpc":
        return "grpc"
    raise InvalidInput(f"--protocol {name!r}: it is http or grpc")


def default_url(protocol: Protocol) -> str:
    """Where ``fmplex serve`` listens unless told otherwise."""
    return "127.0.0.1:8000" if protocol == "http" else "127.0.0.1:8001"


def infer(
    task: Annotated[str, typer.Argument(help="A vFM or bundle.")],
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="ROW...", help="Texts; or files of pictures, sound or series; - reads lines from stdin."
        ),
    ],
    pair: Annotated[
        list[str] | None, typer.Option(help="Second text, one for each ROW, for tasks that take pairs.")
    ] = None,
    url: Url = "",
    protocol: ProtocolName = "http",
    token: Token = "",
    tls_ca: TlsCa = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per row, a line each.")] = False,
    info: Annotated[bool, typer.Option("--info", help="Show where each answer comes from.")] = False,
) -> None:
    """Ask a task of a running server.

    What a row is, the task decides: a text; a picture's file; a WAV file; a series, as numbers joined by commas, as a
    .npy file [channels, time], or as a .csv file with a line for each step and a column for each channel (an empty
    cell has no value).

    Examples:

      fmplex infer review_polarity "great sound, I love it" "it broke after one day"

      fmplex infer guardrail "what a wonderful day" --info

      fmplex infer same_question "How old are you?" --pair "What is your age?"

      cat headlines.txt | fmplex infer news_topic - --json

      fmplex infer clothes shoe.png coat.jpg

      fmplex infer prompt_language hello.wav

      fmplex infer gun_point 0.1,0.2,0.4,0.9 day.csv
    """
    errors = Console(stderr=True, emoji=False)
    try:
        spoken = protocol_of(protocol)
        rows = list(_read(texts))
        with Client(url or default_url(spoken), spoken, timeout, token=token, tls_ca=tls_ca) as client:
            inputs = client.task(task).inputs
            asked = [read_series(row) for row in rows] if "series" in inputs else rows
            answers: list[Answer] = client.predict(task, asked, text_pairs=pair or None)
    except (FMplexClientError, InvalidInput) as error:
        errors.print(f"[red]error:[/] {type(error).__name__}: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from None
    what = "text" if "text" in inputs else "row"
    if as_json:
        for row, answer in zip(rows, answers, strict=True):
            print(json.dumps({what: row} | as_dict(answer, info), ensure_ascii=False))
    else:
        Console(emoji=False).print(table(task, what, rows, answers, info))


def _read(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        if text == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            yield text


def read_series(row: str) -> np.ndarray[Any, Any]:
    """Numbers joined by commas, or what a .npy or .csv file has: [channels, time]. Raises `InvalidInput`."""
    path = Path(row)
    try:
        if path.suffix == ".npy":
            return np.atleast_2d(np.asarray(np.load(path, allow_pickle=False), np.float32))
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                lines = [line for line in csv.reader(file) if line]
            steps = [[float(cell) if cell.strip() else np.nan for cell in line] for line in lines]
            return np.array(steps, np.float32).T
        return np.array([[float(number) for number in row.split(",")]], np.float32)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{row!r} is no series: {error}; write 1,2,3 or name a .npy or .csv file") from None


def as_dict(answer: Answer, info: bool) -> dict[str, Any]:
    """An answer as JSON-ready values; arrays as lists, ``info`` only where asked for."""
    if isinstance(answer, dict):
        return {member: as_dict(result, info) for member, result in answer.items()}
    if isinstance(answer, TokenClassification):
        found: dict[str, Any] = {"tokens": [vars(token) for token in answer.tokens]}
    elif isinstance(answer, Tensors):
        found = {name: _plain(tensor) for name, tensor in answer.tensors.items()}
    else:
        found = {key: _plain(value) for key, value in vars(answer).items() if key != "info" and value is not None}
    if info:
        found["info"] = answer.info
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def table(task: str, what: str, rows: list[str], answers: list[Answer], info: bool) -> Table:
    """The answers for people, one line per row (a bundle: one per row and member)."""
    bundle = any(isinstance(answer, dict) for answer in answers)
    made = Table(title=escape(task), title_justify="left")
    made.add_column(what, max_width=60, no_wrap=True, overflow="ellipsis")
    if bundle:
        made.add_column("member")
    made.add_column("answer")
    for row, answer in zip(rows, answers, strict=True):
        members: dict[str, Result] = answer if isinstance(answer, dict) else {"": answer}
        for i, (member, result) in enumerate(members.items()):
            cells = [row if i == 0 else "", *([member] if bundle else []), describe(result)]
            cells = [escape(cell) for cell in cells]  # texts and labels are not our markup
            if info:
                cells[-1] += f"\n[dim]{escape(describe_info(result))}[/]"
            made.add_row(*cells)
    return made


def describe(result: Result) -> str:
    """One answer in a line."""
    if isinstance(result, Classification):
        return f"{result.label}  {result.score:.3f}"
    if isinstance(result, MultiLabel):
        pairs = zip(result.labels, result.scores, strict=True)
        return ", ".join(f"{label}  {score:.3f}" for label, score in pairs) or "no label"
    if isinstance(result, Regression):
        return ", ".join(f"{value:.4f}" for value in result.values)
    if isinstance(result, Embedding):
        flat = result.vector.reshape(-1)
        shape = " x ".join(str(size) for size in result.vector.shape)
        return f"{shape}: " + ", ".join(f"{value:.3f}" for value in flat[:4]) + (", …" if flat.size > 4 else "")
    if isinstance(result, TokenClassification):
        return ", ".join(f"{s.label} [{s.start}:{s.end}]  {s.score:.3f}" for s in result.spans) or "no span"
    if isinstance(result, Forecast):
        median = result.median if result.quantiles else result.values[..., 0]
        return "; ".join(", ".join(f"{value:.4g}" for value in channel) for channel in median)
    if isinstance(result, Imputation):
        return "; ".join(", ".join(f"{value:.4g}" for value in channel) for channel in result.values)
    if isinstance(result, Anomaly):
        if result.scores is None:
            return f"{result.score:.3f}"
        channel, step = np.unravel_index(int(result.scores.argmax()), result.scores.shape)
        return f"{result.score:.3f}, at step {step} of channel {channel}"
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in result.tensors.items())


def describe_info(result: Result) -> str:
    """Provenance in a line; says so where the task does not map it."""
    if result.info is None:
        return "no provenance: the task does not map info"
    said = dict(result.info)
    try:
        return (
            f"{said['vfm']} version {said['version']} generation {said['generation']}, in a batch of "
            f"{said['batch_rows']} rows of {said['batch_vfms']} vFMs, queue {said['queue_us'] / 1e3:.1f} ms, "
            f"compute {said['compute_us'] / 1e3:.1f} ms"
        )
    except KeyError:  # another version's fields: as they are
        return json.dumps(said)
