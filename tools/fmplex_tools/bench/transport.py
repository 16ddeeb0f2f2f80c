"""What a message between host and engine costs: ``python -m fmplex_tools.bench.transport``.

Each load is a question and its answer between two processes, by `fmplex_backend.transport.Channel` and, to compare
with, by `multiprocessing.connection.Connection`. The two take turns, so that what else the machine does hits both;
shown is the median of a round's best, since noise only adds. "read" has the answering side copy the rows into one
array, as an engine does: memory that comes without a copy is read for the first time there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Pipe
from statistics import median
from typing import Any

import numpy as np

from fmplex_backend import transport
from fmplex_backend.messages import BatchDone, GroupAnswer, RunBatch
from fmplex_backend.transport import Channel

End = Channel | Connection
Load = tuple[RunBatch, tuple[int, ...], bool]
"""A question, the shape of one row of the answer, and whether the rows are read."""

_VFMS = 8


def _question(rows: int, name: str, row: np.ndarray[Any, Any]) -> RunBatch:
    return RunBatch(1, [i % _VFMS for i in range(rows)], [{name: row.copy()} for _ in range(rows)])


def _loads(rows: int) -> dict[str, Load]:
    image = np.random.default_rng(0).random((3, 224, 224), np.float32)
    return {
        f"{rows} x 32 int32": (_question(rows, "input_ids", np.arange(32, dtype=np.int32)), (2,), False),
        f"{rows} x 512 int32": (_question(rows, "input_ids", np.arange(512, dtype=np.int32)), (2,), False),
        f"{rows} x 128 int32, matrix": (
            _question(rows, "input_ids", np.arange(128, dtype=np.int32)),
            (128, 384),
            False,
        ),
        f"{rows} x 3x224x224 float32": (_question(rows, "pixel_values", image), (2,), False),
        f"{rows} x 3x224x224 float32, read": (_question(rows, "pixel_values", image), (2,), True),
    }


def _answer(question: RunBatch, row: tuple[int, ...]) -> BatchDone:
    members: dict[int, list[int]] = {}
    for place, generation in enumerate(question.generations):
        members.setdefault(generation, []).append(place)
    groups = [
        GroupAnswer(g, places, {"vector": np.zeros((len(places), *row), np.float32)}) for g, places in members.items()
    ]
    return BatchDone(question.batch, groups, 0.01)


def serve(end: End) -> None:
    """The other process: gets an answer to give and whether to read, then questions, until the channel is closed."""
    answer, read = None, False
    while True:
        try:
            message = end.recv()
        except EOFError:
            return
        if isinstance(message, RunBatch):
            if read:
                np.stack([next(iter(row.values())) for row in message.rows])
            end.send(answer)
        else:
            answer, read = message


def _microseconds(end: End, question: RunBatch, seconds: float) -> float:
    """The fastest round trip within about ``seconds``."""
    best, until = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        end.send(question)
        if not end.poll(60):  # as the host does
            raise TimeoutError("no answer within 60 s")
        end.recv()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def _n_bytes(question: RunBatch, answer: BatchDone) -> int:
    rows = [array for row in question.rows for array in row.values()]
    return int(sum(a.nbytes for a in rows) + sum(a.nbytes for group in answer.groups for a in group.columns.values()))


def _start(ours: End, theirs: End) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "fmplex_tools.bench.transport",
        "--serve",
        type(ours).__name__,
        str(theirs.fileno()),
    ]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    return process


def measure(rows: int, rounds: int, seconds: float) -> None:
    """Print the table; a round takes ``seconds`` for each load and way."""
    pairs: dict[str, tuple[End, End]] = {"Connection": Pipe(), "Channel": Channel.pair()}
    processes = [_start(*pair) for pair in pairs.values()]
    print(f"{'question, answer':34}{'MB':>7}{'Connection us':>15}{'Channel us':>12}{'ratio':>8}{'Channel MB/s':>14}")
    try:
        for name, (question, row, read) in _loads(rows).items():
            answer = _answer(question, row)
            for end, _ in pairs.values():
                end.send((answer, read))
                _microseconds(end, question, seconds / 4)  # the first touch of new memory
            took: dict[str, list[float]] = {way: [] for way in pairs}
            for _ in range(rounds):
                for way, (end, _) in pairs.items():
                    took[way].append(_microseconds(end, question, seconds))
            old, new = median(took["Connection"]), median(took["Channel"])
            ratio = median(a / b for a, b in zip(took["Connection"], took["Channel"], strict=True))
            size = _n_bytes(question, answer)
            print(f"{name:34}{size / 1e6:7.2f}{old:15.0f}{new:12.0f}{ratio:8.1f}{size / new:14.0f}")
        channel = pairs["Channel"][0]
        assert isinstance(channel, Channel)
        print(
            f"blocks of the asking side: {channel.block_bytes >> 20} MiB; messages past the limit: {channel.streamed}"
        )
    finally:
        for end, _ in pairs.values():
            end.close()
        for process in processes:
            process.wait()


def threshold(rounds: int, seconds: float) -> None:
    """Print what arrays cost pickled and as buffers: where `fmplex_backend.transport.LARGE` comes from."""
    print(
        f"{'bytes of an array':>18}{'1 pickled us':>15}{'1 in a block':>15}{'64 pickled us':>15}{'64 in a block':>15}"
    )
    ours, theirs = Channel.pair()
    for size in (1 << n for n in range(10, 17)):
        line = f"{size:18}"
        for count in (1, 64):
            message = [np.zeros(size, np.uint8) for _ in range(count)]
            took: dict[int, list[float]] = {size + 1: [], size: []}
            for _ in range(rounds):
                for large, times in took.items():
                    transport.LARGE = large
                    times.append(_here(ours, theirs, message, seconds))
            line += "".join(f"{median(times):15.1f}" for times in took.values())
        print(line)


def _here(ours: Channel, theirs: Channel, message: object, seconds: float) -> float:
    """Microseconds of the fastest way there within this process."""
    best, until = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        ours.send(message)
        theirs.recv()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a round, for each load and way")
    parser.add_argument("--threshold", action="store_true", help="compare packet and block for single arrays instead")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        way, fd = options.serve
        with Channel.adopt(int(fd)) if way == "Channel" else Connection(int(fd)) as end:
            serve(end)
    elif options.threshold:
        threshold(options.rounds, options.seconds / 10)
    else:
        measure(options.rows, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
