"""The real perf_analyzer against a vFM: its input from texts, its figures as rows.

perf_analyzer measures in windows until three in a row agree within 10 %, which on a busy machine never happens, and
then prints nothing. Here it gets a fixed time instead: three windows, taken as they are.
"""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_tools.bench.perf_binary import PerfAnalyzer

WINDOWS = 3
GRACE_S = 30.0
"""Seconds over the measurement's own that a run may take before it is ended."""

UNSTABLE = ("Failed to obtain stable measurement", "No valid requests recorded")
"""What perf_analyzer says where a window was ten times slower than another or had no answer at all, as happens on a
busy machine…"""
TRIES = 3
"""…so that it is started so often."""

TEXTS = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Call me Ishmael.",
    (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of "
        "a wife."
    ),
    "Happy families are all alike; every unhappy family is unhappy in its own way.",
    (
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once "
        "or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "
        "“and what is the use of a book,” thought Alice “without pictures or conversations?”"
    ),
    "Marley was dead: to begin with.",
    (
        "No one would have believed in the last years of the nineteenth century that this world was being watched "
        "keenly and closely by intelligences greater than man’s and yet as mortal as his own."
    ),
    (
        "You will rejoice to hear that no disaster has accompanied the commencement of an enterprise which you have "
        "regarded with such evil forebodings."
    ),
)
"""Openings of eight books in the public domain, 3 to 57 words: what is sent where nobody gives texts."""

_SERVER = re.compile(r"Avg request latency: \d+ usec \(overhead \d+ usec \+ queue (\d+) usec \+ compute (\d+) usec\)")
_SERVER_PLAIN = re.compile(
    r"\+ queue (\d+) usec \+ compute input (\d+) usec \+ compute infer (\d+) usec \+ compute output (\d+) usec\)"
)


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, as the client saw them unless named otherwise."""

    task: str
    concurrency: int
    batch: int
    rows_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    server_queue_ms: float
    """As Triton counts it: waiting for the FM host to take the request. FMplex's own queue and compute come after that
    (the host answers later), and are in each answer's ``info``."""
    server_compute_ms: float


@dataclass(frozen=True)
class Load:
    """What to send."""

    task: str
    url: str
    protocol: str
    concurrency: int
    batch: int = 1
    seconds: float = 6.0
    headers: tuple[str, ...] = ()
    """``name: value``, sent with every request."""

    def command(self, binary: Path, data: Path, figures: Path) -> list[str]:
        """perf_analyzer's arguments."""
        window_ms = max(100, round(self.seconds * 1000 / WINDOWS))
        return [
            str(binary), "-m", self.task, "-i", self.protocol, "-u", self.url,
            "-b", str(self.batch), "--concurrency-range", str(self.concurrency),
            "--input-data", str(data),
            "--measurement-interval", str(window_ms), "--max-trials", str(WINDOWS), "--stability-percentage", "999",
            "-f", str(figures), "--verbose-csv", *(part for header in self.headers for part in ("-H", header)),
        ]  # fmt: skip


def levels(spec: str) -> list[int]:
    """Concurrencies of ``4``, ``1,4,16``, ``1:8`` or ``1:9:4`` (start:end:step, the end included).

    Raises `InvalidInput`.
    """
    try:
        if ":" in spec:
            start, end, step = ([int(part) for part in spec.split(":")] + [1])[:3]
            found = list(range(start, end + 1, step)) if len(spec.split(":")) <= 3 and step > 0 else []
        else:
            found = [int(part) for part in spec.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > 1024 or len(found) > 64:
        raise InvalidInput(f"concurrency {spec!r}: write 4, 1,4,16, START:END or START:END:STEP, each from 1 to 1024")
    return found


def input_data(texts: Sequence[str], pair: bool) -> dict[str, Any]:
    """perf_analyzer's ``--input-data`` JSON; a task for pairs gets each text with the next one."""
    if not texts:
        raise InvalidInput("no text to send")
    steps = []
    for i, text in enumerate(texts):
        step = {"text": {"content": [text], "shape": [1]}}
        if pair:
            step["text_pair"] = {"content": [texts[(i + 1) % len(texts)]], "shape": [1]}
        steps.append(step)
    return {"data": steps}


def read_texts(path: Path) -> list[str]:
    """The texts of a file: ``text`` of each object for .jsonl, else its lines. Raises `InvalidInput`."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix == ".jsonl":
            lines = [str(json.loads(line)["text"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path}: not texts: {error!r}; give lines of text, or .jsonl with 'text'") from None
    if not lines:
        raise InvalidInput(f"{path}: no text in it")
    return lines


def measure(binary: PerfAnalyzer, load: Load, texts: Sequence[str], *, pair: bool = False) -> Row:
    """Run perf_analyzer once. Raises `FMplexError` with its own words where it fails or takes too long."""
    with tempfile.TemporaryDirectory(prefix="fmplex-perf-") as scratch:
        data, figures = Path(scratch) / "input.json", Path(scratch) / "figures.csv"
        data.write_text(json.dumps(input_data(texts, pair)), encoding="utf-8")
        command = load.command(binary.path, data, figures)
        for _ in range(TRIES):
            code, out, err = _run(command, binary.environment(), load.seconds + GRACE_S)
            if not any(words in out + err for words in UNSTABLE):
                break
        if code != 0 or not figures.is_file():
            said = " ".join(line.strip() for line in (err or out).splitlines() if line.strip())
            hint = " (more --seconds)" if "larger time window" in said else ""
            raise FMplexError(f"{load.task}: perf_analyzer failed (exit code {code}): {said[-600:]}{hint}")
        return parse(load, figures.read_text(encoding="utf-8"), out)


def _run(command: list[str], environment: dict[str, str], limit_s: float) -> tuple[int, str, str]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Of its own: Ctrl-C comes to us, and we end it; it would take it for "finish this measurement first".
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise FMplexError(f"{command[2]}: perf_analyzer took more than {limit_s:.0f} s and was ended") from None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)  # it keeps nothing on disk that could be left half written
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return process.returncode, out, err


def parse(load: Load, figures: str, report: str) -> Row:
    """A `Row` from perf_analyzer's CSV and printed report. Raises `FMplexError` where they hold no figures."""
    lines = list(csv.DictReader(figures.splitlines()))
    if len(lines) != 1:
        raise FMplexError(f"{load.task}: perf_analyzer wrote {len(lines)} lines of figures, expected 1")
    line = lines[0]

    def ms(column: str) -> float:
        return float(line[column]) / 1e3

    try:
        queue, compute = _server_us(report)
        return Row(
            load.task, load.concurrency, load.batch, float(line["Inferences/Second"]),
            ms("Avg latency"), ms("p50 latency"), ms("p90 latency"), ms("p95 latency"), ms("p99 latency"),
            queue / 1e3, compute / 1e3,
        )  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise FMplexError(f"{load.task}: perf_analyzer's figures are not as expected: {error!r}") from None


def _server_us(report: str) -> tuple[int, int]:
    """The server's mean queue and compute time; its CSV leaves an ensemble's own out, so from the report."""
    if match := _SERVER.search(report):
        return int(match[1]), int(match[2])
    if match := _SERVER_PLAIN.search(report):
        return int(match[1]), int(match[2]) + int(match[3]) + int(match[4])
    raise ValueError("no server-side times in the report")
